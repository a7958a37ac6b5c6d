"""Exports of translation models with tokens around their texts: what OpenNMT-py feeds to the model is what we do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.files.torch_pickle import load_torch
from onmt_llm.checkpoint.formats.opennmt.write import export_opennmt
from onmt_llm.errors import UnsupportedError
from onmt_llm.text.codec import Codec
from tests import tiny

TOKENS = ["<s>", "<pad>", "</s>", "<unk>", *"abcdef", "<extra_id_0>", "__de__", "__fr__"]
CODES = {"de": "__de__", "fr": "__fr__"}
PAIR = {"tokens": CODES, "src": "de", "tgt": "fr"}
FAIRSEQ = {"pad": "<pad>", "add_bos": False}
NO_BOS = {**FAIRSEQ, "bos": None}
PREFIX = {"src_prefix": ["{src_lang}"], "src_suffix": ["</s>"], "decoder_start": ["</s>", "{tgt_lang}"]}
SUFFIX = {"src_suffix": ["</s>", "{src_lang}"], "decoder_start": ["{tgt_lang}"]}
LIKE: dict[str, dict[str, Any]] = {
    "NLLB": {"sequences": PREFIX, "languages": PAIR, "specials": FAIRSEQ},
    "mBART": {"sequences": SUFFIX, "languages": PAIR, "specials": FAIRSEQ},
    "T5": {"sequences": {"src_suffix": ["</s>"], "decoder_start": ["<pad>"]}, "specials": NO_BOS},
}


def write(directory: Path, **settings: Any) -> Path:
    model = tiny.seq2seq(vocab_size=len(TOKENS), position="sinusoidal")
    return tiny.write_checkpoint(directory, model, TOKENS, **settings)


def fed(file: Path, text: str) -> tuple[list[int], list[int]]:
    """Ids of a source, and those that the decoder is given, as OpenNMT-py makes them of its options and vocabulary."""
    import argparse

    content = load_torch(file, allowed=[argparse.Namespace])
    options, vocab = vars(content["opt"]), content["vocab"]
    source, target = text.split(" "), list[str]()
    for transform in options["transforms"]:
        if transform == "suffix":
            source = source + options["src_suffix"].split(" ")
        elif transform == "prefix":
            source = options.get("src_prefix", "").split(" ") + source
            target = options.get("tgt_prefix", "").split(" ")
    begin = [vocab["decoder_start_token"], *(token for token in target if token)]
    return [vocab["src"].index(token) for token in source], [vocab["tgt"].index(token) for token in begin]


@pytest.mark.parametrize("name", LIKE)
def test_its_options_frame_a_text_as_the_checkpoint_does(name: str, tmp_path: Path) -> None:
    own = write(tmp_path / "own", **LIKE[name])
    codec = Codec.open(own)
    file = export_opennmt(own, tmp_path / "there.pt")
    assert fed(file, "a b c") == (codec.src_vocab.ids(codec.encode("a b c")), codec.vocab.ids(codec.start_tokens))
    back = Codec.open(convert(file, tmp_path / "back"))
    assert back.src_vocab.ids(back.encode("a b c")) == codec.src_vocab.ids(codec.encode("a b c"))
    assert back.vocab.ids(back.start_tokens) == codec.vocab.ids(codec.start_tokens)
    # OpenNMT-py masks padding in the decoder too
    assert back.vocab.pad_id not in back.vocab.ids(back.start_tokens)


def test_a_run_is_told_what_it_must_give(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    languages = {"tokens": CODES}
    own = write(tmp_path / "own", sequences=PREFIX, languages=languages, specials=FAIRSEQ)
    export_opennmt(own, tmp_path / "there.pt")
    for words in ('src_prefix: "{src_lang}"', 'tgt_prefix: "{tgt_lang}"', "tgt_file_prefix: true", "de, fr"):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"banned_tokens": ["a"]}, "banned_tokens is a"),
        ({"sequences": SUFFIX, "languages": {"tokens": CODES}}, "decoder_start is {tgt_lang}"),
        ({"sequences": {"decoder_start": ["</s>", "a"]}}, "decoder_start is </s> a"),
        ({"src_tokenizer": {"kind": "none"}}, "src_tokenizer is of kind none"),
    ],
)
def test_what_cannot_be_expressed_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    own = write(tmp_path / "own", specials=FAIRSEQ, **settings)
    with pytest.raises(UnsupportedError, match=words):
        export_opennmt(own, tmp_path / "there.pt")
    assert not list(tmp_path.glob("there*"))


def test_a_model_that_starts_with_its_only_padding_token_is_refused(tmp_path: Path) -> None:
    """Marian-like: there is no other token for the padding of OpenNMT-py."""
    tokens = ["</s>", "<unk>", *"abcdef", "<pad>"]
    model = tiny.seq2seq(vocab_size=len(tokens), position="sinusoidal")
    settings = {"sequences": {"src_suffix": ["</s>"], "decoder_start": ["<pad>"]}, "specials": NO_BOS}
    own = tiny.write_checkpoint(tmp_path / "own", model, tokens, **settings)
    with pytest.raises(UnsupportedError, match="needs a padding token"):
        export_opennmt(own, tmp_path / "there.pt")
    assert not list(tmp_path.glob("there*"))
