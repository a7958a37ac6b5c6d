"""Tokenisers, special tokens and templates of eole's models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.formats.eole.text import open_text
from onmt_llm.checkpoint.formats.imported import ImportedTokenizer, ImportOptions
from onmt_llm.config.checkpoint import SequenceTokens
from onmt_llm.errors import CheckpointError
from tests import tiny

TOKENS = ["<unk>", "<blank>", "<s>", "</s>", "▁a", "▁b", "__de__", "__fr__"]
SPECIALS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<blank>"}


def opened(folder: Path, tokens: list[str] = TOKENS, *, encoder: bool = False, **settings: Any) -> ImportedTokenizer:
    """The text side of a folder with these tokens and this config.json."""
    start = settings.pop("start", "<s>")
    vocab = {"src": tokens, "tgt": tokens, "decoder_start_token": start, "specials": settings.pop("specials", SPECIALS)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    build = tiny.seq2seq if encoder else tiny.llama
    return open_text(folder, settings, build(vocab_size=len(tokens)), ImportOptions())


def test_a_tokenizer_json_is_found_by_its_path(tmp_path: Path) -> None:
    """The converter of eole names the byte 0 <blank>, where a model has no padding token."""
    tiny.write_chat_model(tmp_path / "own")
    (tmp_path / "own/tokenizer.json").rename(tmp_path / "tokenizer.json")
    tokens = (tmp_path / "own/vocab.txt").read_text(encoding="utf-8").splitlines()
    theirs = [*tokens[:3], "<blank>", *tokens[4:]]
    chat = {"inference": {"chat_template": "{{ messages[0].content }}<s>", "optional_eos": ["<s>", "<none>"]}}
    for named in ("${MODEL_PATH}/tokenizer.json", "/somewhere/else/tokenizer.json", str(tmp_path / "tokenizer.json")):
        configs = {"huggingface_tokenize": {"path": named}}
        found = opened(tmp_path, theirs, transforms=["huggingface_tokenize"], transforms_configs=configs, **chat)
        assert found.tokens == tokens and found.spec.kind == "huggingface"
        assert found.specials.model_dump() == {
            "unk": "<unk>",
            "bos": "<s>",
            "eos": "</s>",
            "pad": tokens[3],
            "add_bos": True,
        }
        assert found.stop_tokens == ["<s>"] and found.template == "chat_template.jinja"
    configs = {"huggingface_tokenize": {"path": "other.json"}}
    with pytest.raises(CheckpointError, match=r"other\.json is not"):
        opened(tmp_path, theirs, transforms=["huggingface_tokenize"], transforms_configs=configs)


def test_subword_models_of_both_sides(tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        (tmp_path / name).touch()
    sides = {"src_subword_model": "${MODEL_PATH}/a.model", "tgt_subword_model": "${MODEL_PATH}/b.model"}
    found = opened(tmp_path, transforms=["sentencepiece", "filtertoolong"], transforms_configs={"sentencepiece": sides})
    assert found.spec.file == "b.model" and found.src_spec is not None and found.src_spec.file == "a.model"
    assert sorted(found.files) == ["a.model", "b.model"]
    shared = {
        "src_subword_model": "run/a.model",
        "src_subword_type": "sentencepiece",
        "mapped_tokens": [["<s>", "｟s｠"]],
    }
    shared |= {"src_onmttok_kwargs": {"mode": "space", "joiner_annotate": True}, "gpt2_pretok": False}
    found = opened(tmp_path, transforms=["onmt_tokenize"], transforms_configs={"onmt_tokenize": shared})
    assert found.spec.kind == "onmt_tokenize" and found.src_spec is None
    assert found.spec.options == {"mode": "space", "joiner_annotate": True, "subword_type": "sentencepiece"}


def test_a_missing_subword_model_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    configs = {"bpe": {"src_subword_model": "/gone/codes"}}
    assert opened(tmp_path, transforms=["bpe"], transforms_configs=configs).spec.kind == "whitespace"
    assert "/gone/codes" in caplog.text and "-tokenizer_model" in caplog.text


def test_tokens_around_a_text(tmp_path: Path) -> None:
    configs = {"prefix": {"src_prefix": "__de__", "tgt_prefix": "__fr__"}, "suffix": {"src_suffix": "</s>"}}
    settings = {"transforms": ["prefix", "suffix"], "transforms_configs": configs}
    found = opened(tmp_path, encoder=True, start="</s>", **settings)
    expected = SequenceTokens(src_prefix=["__de__"], src_suffix=["</s>"], decoder_start=["</s>", "__fr__"])
    assert found.sequences == expected and found.specials.bos == "</s>"
    assert opened(tmp_path, encoder=True, transforms=[], transforms_configs=configs).sequences == SequenceTokens()
    assert not opened(tmp_path, start="").specials.add_bos


@pytest.mark.parametrize("order", [["prefix", "sentencepiece"], ["sentencepiece", "prefix"]])
def test_a_prefix_that_is_text_is_no_token(order: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is text before the tokeniser, or if the vocabulary does not have it."""
    prefix = "__de__" if order[0] == "prefix" else "translate:"
    found = opened(tmp_path, encoder=True, transforms=order, transforms_configs={"prefix": {"src_prefix": prefix}})
    assert found.sequences == SequenceTokens() and f"src_prefix is the text '{prefix}'" in caplog.text
