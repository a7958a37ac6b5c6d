"""The words into which a tokenizer.json splits a text: two that split it into the same words split all texts alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from onmt_llm.checkpoint.formats.byte_level_bpe import Splitting, byte_level_bpe

PROBE = (
    "one  two   three\n\n\nfour \n \t five\r\n\r six\n  \n\xa0seven\u3000eight \t\n"
    " It's, IT'S 'tis don'T we'll you'Re I've'd; fooBar FOOBar Foo_Bar éÉ e\u0301 ﬁ ½ Ⅷ ² ß İ"
    " 7 42 365 2026 31415 271828 1.5 1,000..2 v2.0 x1y22z333 2026年 ٣٤ ४५"
    ' (a) [b]{c} $d+e=f^g~h|i<j>`k` -- ... !? :-) a/b//c\\d #e @f {"x":[1,2]};\n\t} ¿qué? «où» „so“ …、。，'
    " Привет ΑΒΓαβγ العربية हिन्दी ខ្មែរ 中文字 こんにちは カタカナ 한국어 🙂 👩🏽‍🚀🇪🇺 \n "
)
"""A text that known splittings cut at different places."""


@cache
def words_of(splitting: Splitting) -> tuple[str, ...]:
    """The words into which a byte-level BPE splits `PROBE`."""
    return words_in(json.loads(byte_level_bpe([], [], splitting, {})))


def words_in(content: Mapping[str, Any]) -> tuple[str, ...]:
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
