"""Opening the tokeniser that a checkpoint names: what is missing or wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.tokenizers.open import brings_vocabulary, open_tokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer

PLAIN = {"mode": "none", "subword_type": "sentencepiece"}


def test_words_need_no_file(tmp_path: Path) -> None:
    assert isinstance(open_tokenizer(TokenizerSpec(kind="whitespace"), tmp_path), WhitespaceTokenizer)


def test_sentencepiece_through_pyonmttok_is_sentencepiece_itself(models: Path) -> None:
    spec = TokenizerSpec(kind="onmt_tokenize", file="sp.model", options=PLAIN)
    assert isinstance(open_tokenizer(spec, models), SentencePieceTokenizer)


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe", "huggingface"])
def test_a_model_must_be_named_and_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"kind '{kind}' must name its model `file`"):
        open_tokenizer(TokenizerSpec(kind=kind), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"of the '{kind}' tokeniser must exist, but there is none at"):
        open_tokenizer(TokenizerSpec(kind=kind, file="none.model"), tmp_path)  # type: ignore[arg-type]


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "sp.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataError, match="is a Git LFS pointer") as error:
        open_tokenizer(TokenizerSpec(kind="sentencepiece", file="sp.model"), tmp_path)
    assert "git lfs pull" in str(error.value.hint)


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe", "huggingface"])
def test_a_file_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xfe nothing of the kind")
    with pytest.raises(DataError, match="file"):
        open_tokenizer(TokenizerSpec(kind=kind, file="file"), tmp_path)  # type: ignore[arg-type]


def test_unknown_options_are_refused(models: Path) -> None:
    spec = TokenizerSpec(kind="sentencepiece", file="sp.model", options={"colour": "red"})
    with pytest.raises(ConfigError, match=r"options of the 'sentencepiece' tokeniser are wrong.*colour"):
        open_tokenizer(spec, models)


def test_options_that_exclude_each_other_are_named(tmp_path: Path) -> None:
    spec = TokenizerSpec(kind="onmt_tokenize", options={"mode": "space", "case_markup": True})
    with pytest.raises(ConfigError, match=r"refuses its options \(mode='space', case_markup=True\)"):
        open_tokenizer(spec, tmp_path)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, False),
        (TokenizerSpec(kind="whitespace"), False),
        (TokenizerSpec(kind="bpe", file="codes"), False),
        (TokenizerSpec(kind="sentencepiece", file="m"), True),
        (TokenizerSpec(kind="huggingface", file="t.json"), True),
        (TokenizerSpec(kind="onmt_tokenize", file="m", options=PLAIN), True),
        (TokenizerSpec(kind="onmt_tokenize", file="m", options={**PLAIN, "mode": "aggressive"}), False),
    ],
)
def test_which_tokenisers_bring_a_vocabulary(spec: TokenizerSpec | None, expected: bool) -> None:
    assert brings_vocabulary(spec) is expected
