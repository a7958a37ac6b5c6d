"""subword-nmt's BPE: its own segmentation, streaming, dropout, and files that hold no codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.errors import DataError
from onmt_llm.text.placeholders import NEWLINE
from onmt_llm.text.tokenizers.bpe import BpeStreamDecoder, BpeTokenizer

apply_bpe = pytest.importorskip("subword_nmt.apply_bpe")
TEXT = "the cat sat on the mat unseen wörd"


@pytest.fixture
def codes(models: Path) -> Path:
    return models / "codes.bpe"


def test_pieces_are_those_of_subword_nmt(codes: Path) -> None:
    with open(codes, encoding="utf-8") as file:
        reference = apply_bpe.BPE(file)
    tokenizer = BpeTokenizer(codes)
    assert tokenizer.encode(TEXT) == reference.process_line(TEXT).split()
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode("the\ncat") == [*tokenizer.encode("the"), NEWLINE, *tokenizer.encode("cat")]


def test_a_word_is_streamed_when_its_last_piece_arrives() -> None:
    decoder = BpeStreamDecoder("@@")
    assert [decoder.push(token) for token in ("un@@", "se@@", "en", "c@@")] == ["", "", "unseen", ""]
    assert decoder.flush() == " c" and decoder.flush() == ""


def test_dropout_leaves_the_text_as_it_is(codes: Path) -> None:
    tokenizer, whole = BpeTokenizer(codes, dropout=1.0), BpeTokenizer(codes)
    assert len(tokenizer.encode(TEXT)) > len(whole.encode(TEXT))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.fingerprint != whole.fingerprint


def test_another_separator(codes: Path) -> None:
    tokenizer = BpeTokenizer(codes, separator="~~")
    pieces = tokenizer.encode("unseen")
    assert all(piece.endswith("~~") for piece in pieces[:-1]) and tokenizer.decode(pieces) == "unseen"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#version: 0.2\na b c d\n", b"one\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "codes").write_bytes(content)
    with pytest.raises(DataError, match="codes must hold BPE codes as subword-nmt writes them"):
        BpeTokenizer(tmp_path / "codes")
