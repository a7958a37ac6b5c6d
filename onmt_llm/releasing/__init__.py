"""Release a trained model in the format in which it is served, verified against the model.

`release` opens a whole model and calls the writer of a format in the table `FORMATS`. Read in this order:
- `formats`: `release`, the table and what a format's writer must do;
- `plain`: `safetensors` and `pytorch`, which keep the weights unchanged;
- `ctranslate2`: the CTranslate2 format, written one variable at a time. `ct2_spec` says what it can express and
  maps every variable of its spec to our tensors;
- `number_format`: the options of how numbers are stored;
- `int8`: how an int8 release keeps its accuracy; `rotation` mixes the channels of the residual stream, `channels`
  scales those inside feed-forward layers (`channel_text.txt`), `calibration` runs a text through the model
  (`blockwise`) and rounds the weights by what it sees (`gptq`);
- `verify`: runs release and model on the same text (`verification_text.txt`) and compares logits, KL and perplexity;
  `verify_translations` compares scores of translations for encoder-decoder models, `int8_products` checks that int8
  products overflow on no processor.
"""

from onmt_llm.releasing.formats import FORMATS, release
from onmt_llm.releasing.number_format import NumberFormat

__all__ = ["FORMATS", "NumberFormat", "release"]
