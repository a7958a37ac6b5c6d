"""Options of the tools for checkpoints: `onmt_llm_convert`, `onmt_llm_lora`, `onmt_llm_checkpoint`, `release_model`."""

from __future__ import annotations

from typing import Literal

from onmt_llm.config.card import CardOptions
from onmt_llm.config.data import DataConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.model import Dtype
from onmt_llm.config.section import Section

Quantization = Literal[
    "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"
]

Quality = Literal["plain", "rotated", "calibrated"]


GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"
]


class ConversionOptions(Section):
    """Source, target and format of the conversion."""

    model_dir: str | None = None
    """Folder (or file) with the foreign weights; with `to`, one of our checkpoints."""
    output: str | None = None
    """Checkpoint directory to write; with `to`, the folder or file of the other format."""
    source: Literal["auto", "hf", "llama_meta", "litgpt", "falcon", "gguf", "opennmt", "eole"] = "auto"
    """Format of the source (also `from`); `auto` detects it from the files."""
    to: Literal["hf", "gguf", "opennmt", "meta", "peft", "ctranslate2", "litgpt"] | None = None
    """Convert in the other direction: write one of our checkpoints as a Hugging Face folder, as a GGUF file for
    llama.cpp and Ollama, as a `.pt` file for OpenNMT-py 3.5, or in Meta's format (`consolidated.00.pth`); or an adapter
    for peft. `ctranslate2` and `litgpt` are refused, with the command that writes them."""
    format: Literal["pytorch", "safetensors"] | None = None
    """`to: opennmt`: store the weights in the `.pt` file (default), or in safetensors files beside it."""
    quantization: GgufType | None = None
    """`to: gguf`: number type of the matrices; null = f16. The types with `k` need the package `cyllama`."""
    tokenizer_model: str | None = None
    """SentencePiece model or tokenizer.json, if not found beside the weights; `none` converts the weights alone, for a
    model that reads no text but can be exported and released."""
    vocab_file: str | None = None
    """Vocabulary, if neither the weights nor the tokeniser contain it."""
    ignore_unknown: bool = False
    """Convert a model whose configuration has keys that are not known; they are logged and ignored. Without it they are
    refused, since they may change what the model computes."""
    dtype: Dtype | None = None
    """Type of the written weights; null = as in the source. `to: gguf` has `quantization` instead."""
    shard_size: str = "5GB"
    """Maximum size of a weight file; larger models are written in several files."""
    force: bool = False
    """Replace an existing output."""


class ConvertConfig(Section):
    """Convert LLaMA, Falcon, GGUF and OpenNMT-py weights to checkpoints, and back to Hugging Face, GGUF, OpenNMT-py."""

    conversion: ConversionOptions = ConversionOptions()
    card: CardOptions = CardOptions()
    integrity: IntegrityConfig = IntegrityConfig()


class LoraToolOptions(Section):
    """The adapter, its base model and what to do with them."""

    action: Literal["merge", "concat", "import", "export"] = "merge"
    """`merge`: merge the adapter into the weights of the base, or expanded blocks (`expand_type: concat`) into the
    original ones (an approximation). `concat`: write base and adapter side by side into one checkpoint. `import`:
    convert a peft adapter (a folder with `adapter_config.json`) to a checkpoint. `export`: convert a checkpoint to a
    peft adapter."""
    base_model: str | None = None
    """Checkpoint that the adapter was trained on. `export`: base model for peft to load, a name or a folder."""
    lora_weights: str | None = None
    """Checkpoint of the adapter or the expanded blocks; `import`: folder of the peft adapter."""
    output: str | None = None
    """Checkpoint directory to write; `export`: folder of the peft adapter."""
    force: bool = False
    """Replace an existing output."""


class LoraToolConfig(Section):
    """Merge a LoRA adapter or expanded blocks into the base model; import and export peft adapters."""

    adapters: LoraToolOptions = LoraToolOptions()
    card: CardOptions = CardOptions()
    integrity: IntegrityConfig = IntegrityConfig()


class CheckpointOptions(Section):
    """Checkpoint and output of the action."""

    model: str | None = None
    """Checkpoint directory; `verify`, `seal`: also an adapter or a CTranslate2 release."""
    out_file: str | None = None
    """`extract_vocabulary`, `extract_embeddings`: text file to write, one token per line."""
    side: Literal["src", "tgt"] = "tgt"
    """`extract_vocabulary`, `extract_embeddings`: source or target side."""
    models: list[str] = []
    """`average`: checkpoints of one model to average."""
    output: str | None = None
    """`average`, `consolidate`, `export`: checkpoint directory to write."""
    fp32: bool = False
    """`average`: store the mean in float32, whatever the type of the models."""
    force: bool = False
    """`average`, `consolidate`, `export`: replace an existing output."""


class CheckpointToolConfig(Section):
    """Inspect a checkpoint (`info`, `verify`, `extract_vocabulary`, `extract_embeddings`), `seal` or `average` it;
    `consolidate` the parts that several processes have written, or `export` them without the training state."""

    checkpoint: CheckpointOptions = CheckpointOptions()
    integrity: IntegrityConfig = IntegrityConfig()


class ReleaseOptions(Section):
    """Model, format and verification of the release."""

    model: str | None = None
    """Checkpoint directory; merge adapters first."""
    output: str | None = None
    """Folder (or, for `pytorch`, file) to write."""
    format: Literal["ctranslate2", "gguf", "safetensors", "pytorch"] = "ctranslate2"
    """Format of the release; `gguf` is for llama.cpp and Ollama."""
    quantization: Quantization | GgufType | None = None
    """Number type of the matrices. `ctranslate2`: `int8` to `float32`, null = float32. `gguf`: `f32` to `q6_k`, null =
    f16; the types with `k` need the package `cyllama`."""
    quality: Quality | None = None
    """How int8 weights are rounded. `plain`: each by itself; `rotated`: after the channels of the residual stream were
    mixed, so that none is much larger than the others, and those inside gated feed-forward layers were scaled by a text
    in the package: less is lost, at the same speed; `calibrated`: in addition so that the outputs change least on
    `calibration_text`. null = `rotated`, or `plain` for a model that cannot be rotated."""
    calibration_text: str | None = None
    """Text file for `quality: calibrated`, with text of the kind that the model will read; up to 8,192 tokens are
    used. null = the training corpora in `data`: give the YAML file of the run with `-config`."""
    compare_plain: bool = False
    """Measure the quality `plain` too, and report its figures beside those of the release. Perplexities need a
    `verify_text` of at least 6,000 tokens."""
    keep_float: list[str] = []
    """Layers that are not quantised, by name as in `lora_layers`: with `down_proj` int8 loses least, at a lower
    speed."""
    verify: Literal["strict", "warn", "off"] = "strict"
    """Compare the release with the model on real text. `strict`: publish nothing if they differ by more than the bound;
    `warn`: only warn."""
    verify_text: str | None = None
    """Text file for the comparison; null = paragraphs included in the package."""
    force: bool = False
    """Replace an existing output."""


class ReleaseConfig(Section):
    """Release a trained model for serving, verified against the original."""

    release: ReleaseOptions = ReleaseOptions()
    corpora: DataConfig = DataConfig()
    card: CardOptions = CardOptions()
    integrity: IntegrityConfig = IntegrityConfig()
