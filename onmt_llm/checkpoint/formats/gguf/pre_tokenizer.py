"""Which pre-tokeniser of llama.cpp a tokenizer.json has: the one that splits a text into the same words.

llama.cpp's converter recognises them in this way too, by the tokens of one text. Here words are compared, so that the
vocabulary has no influence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.gguf.splitting import SPLITTINGS
from onmt_llm.checkpoint.formats.words import PROBE, words_in, words_of
from onmt_llm.errors import UnsupportedError

_Json = Mapping[str, Any]

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
    words = words_in(content)
    for name, splitting in SPLITTINGS.items():
        same = splitting.whole_words == whole_words and words_of(splitting) == words
        if same and name not in _OTHER_IN_LLAMA_CPP:
            return name
    raise UnsupportedError(
        f"A GGUF file names how its tokeniser splits text into words, one of {', '.join(SPLITTINGS)}, but {file} "
        "splits it in another way.",
        hint="write the model with -to hf",
    )


def keeps_text(content: _Json, file: Path, *, crosses_words: bool) -> bool:
    """Whether a SentencePiece-like tokenizer.json begins a text with a space.

    Args:
        content: The parsed tokenizer.json.
        file: Where it is, for the message.
        crosses_words: It has pieces of more than one word.

    Raises:
        UnsupportedError: It changes text beyond that, or splits it where llama.cpp does not.
    """
    words = words_in(content)
    text, marked = "".join(words), PROBE.replace(" ", "▁")
    if text not in (marked, f"▁{marked}") or (len(words) > 1 and crosses_words):
        raise UnsupportedError(
            f"The tokeniser of a GGUF file must only mark spaces, but {file} changes the text, or splits it into "
            "words, beyond that."
        )
    return text != marked
