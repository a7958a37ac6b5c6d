"""Pre-tokenisers of GGUF files: the words of a text are those that the models' patterns find, one after the other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onmt_llm.checkpoint.formats.byte_level_bpe import byte_level_bpe
from onmt_llm.checkpoint.formats.gguf.splitting import SPLITTINGS, begins_with_bos, splitting
from onmt_llm.errors import UnsupportedError
from onmt_llm.text.decoding import byte_alphabet

tokenizers = pytest.importorskip("tokenizers")
TEXT = "Hello HTTPServer's 12345  don'T\n\n漢字 x=3.14/\n ÉCOLE (a,b) 1.2\t"
WORDS = {
    "gpt-2": "Hello| HTTPServer|'s| 12345| | don|'|T|\n|\n|漢字| x|=|3|.|14|/|\n| ÉCOLE| (|a|,|b|)| 1|.|2|\t",
    "smollm": "Hello| HTTPServer|'s| |1|2|3|4|5| | don|'|T|\n|\n|漢字| x|=|3|.|1|4|/|\n| ÉCOLE| (|a|,|b|)| |1|.|2|\t",
    "falcon": "Hello| HTTPServer|'|s| |123|45| | don|'|T|\n|\n|漢字| x|=|3|.|14|/|\n| ÉCOLE| |(|a|,|b|)| 1|.|2|\t",
    "llama-bpe": "Hello| HTTPServer|'s| |123|45| | don|'T|\n\n|漢字| x|=|3|.|14|/\n| ÉCOLE| (|a|,b|)| |1|.|2|\t",
    "qwen2": "Hello| HTTPServer|'s| |1|2|3|4|5| | don|'T|\n\n|漢字| x|=|3|.|1|4|/\n| ÉCOLE| (|a|,b|)| |1|.|2|\t",
    "tekken": "Hello| HTTPServer|'s| |1|2|3|4|5| | don|'T|\n\n|漢字| x|=|3|.|1|4|/\n| ÉCOLE| (|a|,b|)| |1|.|2|\t",
    "gpt-4o": "Hello| HTTPServer's| |123|45| | don'T|\n\n|漢字| x|=|3|.|14|/\n| ÉCOLE| (|a|,b|)| |1|.|2|\t",
    "bloom": "Hello| HTTPServer's| 12345| | don'T|\n\n|漢字| x=3|.|14/|\n| ÉCOLE| (|a|,|b|)| 1|.|2|\t",
    "viking": "Hello| HTTPServer's| |1|2|3|4|5| | don'T|\n\n|漢字| x=|3|.|1|4|/|\n| ÉCOLE| (|a|,|b|)| |1|.|2|\t",
    # its pattern of punctuation matches letters of ASCII too, within the words that were found before
    "deepseek-llm": (
        "Hello| HTTPServer|'|s| |12345| | don|'|T|\n|\n|漢字| x|=|3|.|14|/|\n| É|COLE| (|a|,|b|)| |1|.|2|\t"
    ),
    "deepseek-coder": (
        "Hello| HTTPServer|'|s| |1|2|3|4|5| | don|'|T|\n|\n|漢字| x|=|3|.|1|4|/|\n| ÉCOLE| (|a|,|b|)| |1|.|2|\t"
    ),
    "deepseek-v3": "Hello| HTTPServer|'s| |123|45| | don|'T|\n\n|漢字| x|=|3|.|14|/\n| ÉCOLE| (|a|,b|)| |1|.|2|\t",
}
"""By kind of splitting, the words of the text, with `|` between them."""


def tokenizer(name: str) -> Any:
    content = byte_level_bpe(sorted(byte_alphabet().values()), [], splitting(name), {})
    return tokenizers.Tokenizer.from_str(content.decode("utf-8"))


@pytest.mark.parametrize("name", WORDS)
def test_words(name: str) -> None:
    pieces = [TEXT[a:b] for _, (a, b) in tokenizer(name).pre_tokenizer.pre_tokenize_str(TEXT)]
    assert "|".join(pieces) == WORDS[name]


@pytest.mark.parametrize("name", SPLITTINGS)
def test_every_text_comes_back(name: str) -> None:
    assert SPLITTINGS[name] in [SPLITTINGS[kind] for kind in (*WORDS, "stablelm2", "dbrx")]
    found = tokenizer(name)
    assert found.decode(found.encode(TEXT).ids) == TEXT
    assert json.loads(found.to_str())["model"]["ignore_merges"] or not begins_with_bos(name)


def test_texts_of_llama3_and_mistral_begin_with_bos() -> None:
    found = {name for name in SPLITTINGS if begins_with_bos(name)}
    names = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 tekken"
    assert found == set(names.split())  # add_bos in llama.cpp's src/llama-vocab.cpp


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'some-new-one'"):
        splitting("some-new-one")
