"""The text side of T5: ids of `transformers`, from spiece.model and from tokenizer.json, there and back."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from parity.test_families_seq2seq import T5, save_model

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.text.codec import Codec

transformers = pytest.importorskip("transformers")

ALPHABETS = ("az", "àź", "ая", "αω", "اي", "את", "कह", "กฮ", "가갦", "あん", "一丶", "აჰ")
ENDS = ("", ".", "!", "™", " ½ ﬁ Ⅷ", "\u3000", "\u200b a", "\xa0b", " ☃", "（ｘ）", "  ")
"""What normalisation changes, and what no model knows."""


def lines(count: int, seed: int) -> list[str]:
    """Lines of random words, each in one of twelve scripts."""
    rng = random.Random(seed)

    def word(first: str, last: str) -> str:
        return "".join(chr(rng.randint(ord(first), ord(last))) for _ in range(rng.randint(1, 7)))

    def line(alphabet: str) -> str:
        words = [word(*alphabet) for _ in range(rng.randint(1, 12))]
        return rng.choice((" ", " ", "  ")).join(words) + rng.choice(ENDS)

    return [line(ALPHABETS[i % len(ALPHABETS)]) for i in range(count)]


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A unigram model with T5's special tokens, trained on the scripts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(1500, 1)),
        model_writer=model,
        **{"vocab_size": 800, "hard_vocab_limit": False, "character_coverage": 0.99, "minloglevel": 2},
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "num_threads": 1},
    )
    return model.getvalue()


def save_t5(directory: Path, spiece: bytes, rows: int = 928, **stated: Any) -> Any:
    """A small random T5 with a spiece.model (and a tokenizer_config.json), and the tokeniser of transformers."""
    save_model(directory, "t5", {**T5, "vocab_size": rows})
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    (directory / "spiece.model").write_bytes(spiece)
    if stated:
        (directory / "tokenizer_config.json").write_text(json.dumps(stated))
    return transformers.AutoTokenizer.from_pretrained(directory)


def check_ids(directory: Path, theirs: Any) -> None:
    """Ids of sources, and the text of ids, are those of transformers."""
    codec = Codec.open(directory)
    texts = lines(1200, 2)
    assert [codec.src_vocab.ids(codec.encode(text)) for text in texts] == theirs(texts)["input_ids"]
    for text in texts[:120]:
        ids = theirs(text)["input_ids"]
        if theirs.unk_token_id not in ids:
            assert codec.decode(codec.vocab.tokens(ids)) == theirs.decode(ids, skip_special_tokens=True)


def test_ids_and_texts(tmp_path: Path, spiece: bytes) -> None:
    theirs = save_t5(tmp_path / "hf", spiece)
    convert(tmp_path / "hf", tmp_path / "ours")
    check_ids(tmp_path / "ours", theirs)
    codec = Codec.open(tmp_path / "ours")
    assert codec.vocab.tokens(range(900)) == theirs.convert_ids_to_tokens(list(range(900)))
    assert codec.start_tokens == ["<pad>"] and codec.source_frame == ([], ["</s>"])
    assert codec.decode(["▁", "a", "<extra_id_0>", "</s>"]) == "a"

    theirs.save_pretrained(tmp_path / "hf")  # tokenizer.json, whose post-processor adds the end
    (tmp_path / "hf/spiece.model").unlink()
    convert(tmp_path / "hf", tmp_path / "again")
    check_ids(tmp_path / "again", theirs)
    assert list(Codec.open(tmp_path / "again").vocab)[:900] == list(codec.vocab)[:900]

    for name in ("ours", "again"):
        export_hf(tmp_path / name, tmp_path / "back", overwrite=True)
        back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
        texts = lines(120, 3)
        assert back(texts)["input_ids"] == theirs(texts)["input_ids"]
        assert back.pad_token_id == 0 and back.eos_token_id == 1
        config = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").generation_config
        assert config.decoder_start_token_id == 0 and config.eos_token_id == 1


def test_number_of_sentinels(tmp_path: Path, spiece: bytes) -> None:
    """mT5 and MADLAD-400 have none, UMT5 300."""
    for extra_ids in (0, 3):
        theirs = save_t5(tmp_path / "hf", spiece, 820, tokenizer_class="T5Tokenizer", extra_ids=extra_ids)
        convert(tmp_path / "hf", tmp_path / "ours", overwrite=True)
        vocab = Codec.open(tmp_path / "ours").vocab
        assert ["<extra_id_0>" in vocab, "<extra_id_2>" in vocab] == [extra_ids > 0] * 2
        assert len(vocab) == 820 and theirs.convert_ids_to_tokens(800 + extra_ids - 1) == vocab[800 + extra_ids - 1]
    for wrong in (21, -1, "many"):
        (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps({"extra_ids": wrong}))
        with pytest.raises(CheckpointError, match=r"extra_ids in tokenizer_config\.json must be"):
            convert(tmp_path / "hf", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_spiece_model_of_another_family_is_refused(tmp_path: Path, spiece: bytes) -> None:
    save_t5(tmp_path / "hf", spiece)
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PegasusTokenizer"}))
    with pytest.raises(UnsupportedError, match=r"spiece\.model"):
        convert(tmp_path / "hf", tmp_path / "wrong")
