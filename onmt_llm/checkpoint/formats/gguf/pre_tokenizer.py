"""Which pre-tokeniser of llama.cpp a tokenizer.json has: the one that splits a text into the same words.

llama.cpp's converter recognises them in this way too, by the tokens of one text. Here words are compared, so that the
vocabulary has no influence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.byte_level_bpe import Splitting, byte_level_bpe
from onmt_llm.checkpoint.formats.gguf.splitting import SPLITTINGS
from onmt_llm.errors import UnsupportedError

_Json = Mapping[str, Any]

PROBE = (
    "one  two   three\n\n\nfour \n \t five\r\n\r six\n  \n\xa0seven\u3000eight \t\n"
    " It's, IT'S 'tis don'T we'll you'Re I've'd; fooBar FOOBar Foo_Bar éÉ e\u0301 ﬁ ½ Ⅷ ² ß İ"
    " 7 42 365 2026 31415 271828 1.5 1,000..2 v2.0 x1y22z333 2026年 ٣٤ ४५"
    ' (a) [b]{c} $d+e=f^g~h|i<j>`k` -- ... !? :-) a/b//c\\d #e @f {"x":[1,2]};\n\t} ¿qué? «où» „so“ …、。，'
    " Привет ΑΒΓαβγ العربية हिन्दी ខ្មែរ 中文字 こんにちは カタカナ 한국어 🙂 👩🏽‍🚀🇪🇺 \n "
)
"""A text in which the splittings of `SPLITTINGS` differ from one another."""
_OTHER_IN_LLAMA_CPP = ("default",)
"""Names for which llama.cpp has another splitting than models that are stored with them."""


def pre_tokenizer_name(content: _Json, file: Path) -> str:
    """The name for `tokenizer.ggml.pre` of a byte-level BPE.

    Args:
        content: The parsed tokenizer.json.
        file: Where it is, for the message.

    Raises:
        UnsupportedError: None of llama.cpp's splits a text in this way.
    """
    whole_words = bool(content["model"].get("ignore_merges"))
    words = _words(content)
    for name, splitting in SPLITTINGS.items():
        same = splitting.whole_words == whole_words and _words_of(splitting) == words
        if same and name not in _OTHER_IN_LLAMA_CPP:
            return name
    raise UnsupportedError(
        f"A GGUF file names how its tokeniser splits text into words, one of {', '.join(SPLITTINGS)}, but {file} "
        "splits it in another way.",
        hint="write the model with -to hf",
    )


@cache
def _words_of(splitting: Splitting) -> tuple[str, ...]:
    return _words(json.loads(byte_level_bpe([], [], splitting, {})))


def _words(content: _Json) -> tuple[str, ...]:
    """The words into which a tokenizer.json splits `PROBE`. Unicode normalisation, which llama.cpp leaves out for every
    model, is not applied."""
    import tokenizers

    forms = ("NFC", "NFKC", "NFD", "NFKD")
    normaliser = content.get("normalizer")
    if normaliser is not None and normaliser.get("type") in forms:
        normaliser = None
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    parts = {**content, "model": empty, "added_tokens": [], "normalizer": normaliser, "post_processor": None}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parts))
    text = tokenizer.normalizer.normalize_str(PROBE) if tokenizer.normalizer else PROBE
    if tokenizer.pre_tokenizer is None:
        return (text,)
    return tuple(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))


def keeps_text(content: _Json, file: Path, *, crosses_words: bool) -> bool:
    """Whether a SentencePiece-like tokenizer.json begins a text with a space.

    Args:
        content: The parsed tokenizer.json.
        file: Where it is, for the message.
        crosses_words: It has pieces of more than one word.

    Raises:
        UnsupportedError: It changes text beyond that, or splits it where llama.cpp does not.
    """
    words = _words(content)
    text, marked = "".join(words), PROBE.replace(" ", "▁")
    if text not in (marked, f"▁{marked}") or (len(words) > 1 and crosses_words):
        raise UnsupportedError(
            f"The tokeniser of a GGUF file must only mark spaces, but {file} changes the text, or splits it into "
            "words, beyond that."
        )
    return text != marked
