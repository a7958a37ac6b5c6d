"""vocab.txt against transformers' BertTokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import ten_scripts
import tokenizers

from onmt_llm.checkpoint.formats.word_piece import from_vocab_txt
from onmt_llm.errors import DataError
from onmt_llm.text.tokenizers.huggingface import HfTokenizer

LINES = ten_scripts.lines(1000)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=False)
    tokenizer.train_from_iterator(ten_scripts.lines(600, seed=1), vocab_size=900, show_progress=False)
    folder = tmp_path_factory.mktemp("bert")
    tokenizer.save_model(str(folder))
    return folder / "vocab.txt"


@pytest.mark.parametrize("lower", [True, False])
def test_as_in_transformers(lower: bool, vocabulary: Path, tmp_path: Path) -> None:
    import transformers

    theirs = transformers.BertTokenizer(str(vocabulary), do_lower_case=lower)
    (tmp_path / "tokenizer.json").write_bytes(from_vocab_txt(vocabulary, {"do_lower_case": lower}))
    ours = HfTokenizer(tmp_path / "tokenizer.json")
    for line in LINES:
        pieces = ours.encode(line)
        assert pieces == theirs.tokenize(line)
        assert ours.decode(pieces) == theirs.backend_tokenizer.decoder.decode(pieces)
    assert ours.control_tokens == {"[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"}
    encoded = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(LINES[1])
    assert encoded.ids == theirs(LINES[1]).input_ids


@pytest.mark.parametrize(("content", "message"), [("a\nb\n", "lacks"), ("[CLS]\n[SEP]\n[UNK]\na\na\n", "repeats")])
def test_damaged_files_get_one_sentence(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        from_vocab_txt(tmp_path / "vocab.txt", {})
    with pytest.raises(DataError, match="cannot be read"):
        from_vocab_txt(tmp_path / "missing.txt", {})
