"""Vocabulary, special tokens and chat template of Hugging Face and SentencePiece files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.checkpoint.formats.tokenizer_files import (
    CHATML,
    TEMPLATE_FILE,
    fit,
    from_huggingface,
    from_sentencepiece,
    read_json,
    set_template,
)
from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import CheckpointError, DataError, UnsupportedError

tokenizers = pytest.importorskip("tokenizers")
VOCAB = ["<unk>", "<s>", "</s>", "a", "b", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model directory with a word-level tokenizer.json."""
    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(VOCAB)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def test_every_row_of_the_embedding_has_a_token(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    imported = from_huggingface(folder, rows=10)
    assert imported.tokens[:8] == VOCAB and len(set(imported.tokens)) == 10
    with caplog.at_level("WARNING", logger="onmt_llm"):
        assert from_huggingface(folder, rows=5).tokens == VOCAB[:5]
    assert "3 tokens of the tokeniser have no row" in caplog.text and "<|im_start|>" in caplog.text
    assert fit(["a"], 1) == ["a"]


def test_special_tokens_come_by_name_before_id(folder: Path) -> None:
    write(folder, "config.json", bos_token_id=1, eos_token_id=[2, 7], pad_token_id=-1)
    imported = from_huggingface(folder, rows=8)
    assert (imported.specials.unk, imported.specials.bos, imported.specials.eos) == ("<unk>", "<s>", "</s>")
    assert imported.specials.pad is None and imported.stop_tokens == ["<|eot_id|>"]
    write(folder, "tokenizer_config.json", eos_token={"content": "<|im_end|>"}, pad_token="none such")
    imported = from_huggingface(folder, rows=8)
    assert imported.specials.eos == "<|im_end|>" and imported.specials.pad is None
    assert imported.stop_tokens == ["</s>", "<|eot_id|>"]


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_an_id_that_no_token_has_is_refused(folder: Path, role: str) -> None:
    write(folder, "generation_config.json", **{f"{role}_token_id": 99})
    with pytest.raises(CheckpointError, match=f"{role}_token_id must be the id of one of the model's 8 tokens.* 99"):
        from_huggingface(folder, rows=8)


def test_a_vocabulary_file_replaces_the_tokenisers_own(folder: Path) -> None:
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in reversed(VOCAB)))
    assert from_huggingface(folder, rows=8, vocab_file=folder / "vocab.txt").tokens == VOCAB[::-1]


def test_the_template_is_found_where_it_is_written(folder: Path) -> None:
    write(folder, "tokenizer_config.json", chat_template=CHATML)
    assert from_huggingface(folder, rows=8).template == "chatml"
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ 1 }}<|eot_id|>"}]
    write(folder, "tokenizer_config.json", chat_template=named, eos_token="</s>")
    imported = from_huggingface(folder, rows=8)
    assert imported.template == TEMPLATE_FILE and imported.blobs[TEMPLATE_FILE] == b"{{ 1 }}<|eot_id|>"
    assert imported.stop_tokens == ["<|eot_id|>"]
    (folder / TEMPLATE_FILE).write_text("{{ 2 }}")
    assert from_huggingface(folder, rows=8).blobs[TEMPLATE_FILE] == b"{{ 2 }}"


def test_chatml_without_its_tokens_stays_a_file() -> None:
    imported = ImportedTokenizer(tokens=["a", "</s>"], specials=SpecialTokens())
    set_template(imported, CHATML)
    assert imported.template == TEMPLATE_FILE and imported.stop_tokens == []
    set_template(imported, None)
    assert imported.template == TEMPLATE_FILE


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "is not valid JSON"), ("[1]", "must be a JSON object, but is a list"), ("[" * 100_000, "is not valid JSON")],
)
def test_files_that_are_no_json_objects_are_refused(folder: Path, content: str, problem: str) -> None:
    (folder / "config.json").write_text(content)
    for read in (lambda: from_huggingface(folder, rows=8), lambda: read_json(folder / "config.json")):
        with pytest.raises(CheckpointError, match=f"config.json {problem}"):
            read()


@pytest.mark.parametrize("named", ["BPEDecoder", "none"])
def test_a_tokeniser_that_no_codec_opens_is_refused(folder: Path, named: str) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    decoder = {"type": "BPEDecoder", "suffix": "</w>"} if named == "BPEDecoder" else None
    write(folder, "tokenizer.json", **{**content, "decoder": decoder})
    with pytest.raises(UnsupportedError, match=rf"tokenizer.json must have a .* decoder, but has: {named}"):
        from_huggingface(folder, rows=8)


def test_a_folder_without_a_tokeniser_has_weights_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "config.json", bos_token_id=1, eos_token_id=2)
    write(tmp_path, "tokenizer_config.json", chat_template=CHATML)
    with caplog.at_level("WARNING", logger="onmt_llm"):
        imported = from_huggingface(tmp_path, rows=8)
    assert caplog.text.count("without a tokeniser") == 1
    assert imported.spec.kind == "none" and imported.template is None and len(imported.tokens) == 8
    assert (imported.specials.bos, imported.specials.eos) == (imported.tokens[1], imported.tokens[2])


@pytest.mark.parametrize("name", ["qwen.tiktoken", "vocab.json"])
def test_a_tokeniser_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UnsupportedError, match=rf"must be .*tokenizer.json, .*, but is {name}"):
        from_huggingface(tmp_path, rows=8)
    assert from_huggingface(tmp_path, rows=8, tokenizer_model=Path("none")).spec.kind == "none"


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        read_json(tmp_path / "config.json")
    with pytest.raises(DataError, match="There is no tokeniser model at"):
        from_sentencepiece(tmp_path / "none.model", rows=8)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(DataError, match="must be a SentencePiece model"):
        from_huggingface(tmp_path, rows=8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json"):
        from_huggingface(tmp_path, rows=8)
