"""The text side of T5: ids of `transformers`, from spiece.model and from tokenizer.json, there and back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from parity.test_families_seq2seq import SRC_BS, SRC_MASK_BS, T5, TGT_BT, logits_of, save_model
from safetensors.torch import load_file, save_file
from ten_scripts import lines

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.load import load_model
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.text.codec import Codec

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A unigram model with T5's special tokens, trained on ten scripts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(1500, seed=1)),
        model_writer=model,
        **{"vocab_size": 800, "hard_vocab_limit": False, "character_coverage": 0.99, "minloglevel": 2},
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "num_threads": 1},
    )
    return model.getvalue()


def save_t5(directory: Path, spiece: bytes, rows: int = 928, **stated: Any) -> Any:
    """A small random T5 with a spiece.model (and a tokenizer_config.json), and the tokeniser of transformers."""
    save_model(directory, "t5", {**T5, "vocab_size": rows, "eos_token_id": 1})
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    (directory / "spiece.model").write_bytes(spiece)
    if stated:
        (directory / "tokenizer_config.json").write_text(json.dumps(stated))
    return transformers.AutoTokenizer.from_pretrained(directory)


def test_ids_and_texts(tmp_path: Path, spiece: bytes) -> None:
    theirs = save_t5(tmp_path / "hf", spiece)
    convert(tmp_path / "hf", tmp_path / "ours")
    codec = Codec.open(tmp_path / "ours")
    assert codec.vocab.tokens(range(900)) == theirs.convert_ids_to_tokens(list(range(900)))
    assert codec.start_tokens == ["<pad>"] and codec.source_frame == ([], ["</s>"])
    assert codec.decode(["▁", "a", "<extra_id_0>", "</s>"]) == "a"
    texts = lines(1000, seed=2)
    library = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    ids = [codec.src_vocab.ids(codec.encode(text)) for text in texts]
    assert ids == [[*library.encode(text), 1] for text in texts]
    # The rest are ties of equal score, and characters of six bytes or more, which `tokenizers` does not normalise.
    assert sum(one == other for one, other in zip(ids, theirs(texts)["input_ids"], strict=True)) >= 985
    check_texts(codec, theirs, texts)
    check_way_back(tmp_path, "ours", theirs)


def test_tokenizer_json(tmp_path: Path, spiece: bytes) -> None:
    """A post-processor adds the end."""
    theirs = save_t5(tmp_path / "hf", spiece)
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/spiece.model").unlink()
    convert(tmp_path / "hf", tmp_path / "ours")
    codec, texts = Codec.open(tmp_path / "ours"), lines(1000, seed=2)
    assert [codec.src_vocab.ids(codec.encode(text)) for text in texts] == theirs(texts)["input_ids"]
    assert codec.start_tokens == ["<pad>"] and codec.source_frame == ([], ["</s>"])
    check_texts(codec, theirs, texts)
    check_way_back(tmp_path, "ours", theirs)


def check_texts(codec: Codec, theirs: Any, texts: list[str]) -> None:
    """Answers become the same text."""
    for ids in theirs(texts[:200])["input_ids"]:
        if theirs.unk_token_id not in ids:
            assert codec.decode(codec.vocab.tokens(ids)) == theirs.decode(ids, skip_special_tokens=True)


def check_way_back(directory: Path, name: str, theirs: Any) -> None:
    """The exported tokeniser is the original one, and generation begins and ends with the same tokens."""
    export_hf(directory / name, directory / "back")
    back = transformers.AutoTokenizer.from_pretrained(directory / "back")
    texts = lines(100, seed=3)
    assert back(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert [back.pad_token_id, back.eos_token_id, back.unk_token_id] == [0, 1, 2]
    config = transformers.GenerationConfig.from_pretrained(directory / "back")
    assert [config.decoder_start_token_id, config.eos_token_id, config.pad_token_id] == [0, 1, 0]
    again, ours = (Codec.open(path) for path in (convert(directory / "back", directory / "again"), directory / name))
    assert list(again.vocab) == list(ours.vocab)
    assert again.config.model_copy(update={"source": ""}) == ours.config.model_copy(update={"source": ""})


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


@torch.no_grad()
def test_as_madlad_is_published(tmp_path: Path) -> None:
    """Other ids, bytes for unknown characters, targets that begin with <unk>, and the embedding under another name."""
    model = io.BytesIO()
    settings = {"vocab_size": 900, "hard_vocab_limit": False, "byte_fallback": True, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(1500, seed=1)),
        model_writer=model,
        **{**settings, "user_defined_symbols": ["<2de>"], "minloglevel": 2},
    )
    ends = {"decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    theirs = save_model(tmp_path / "hf", "t5", {**T5, **ends, "vocab_size": 900}, untied=True)
    (tmp_path / "hf/tokenizer.json").unlink()
    (tmp_path / "hf/spiece.model").write_bytes(model.getvalue())
    stated = {"extra_ids": 0, "pad_token": "<s>", "eos_token": "</s>", "tokenizer_class": "T5Tokenizer"}
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps(stated))
    file = tmp_path / "hf/model.safetensors"
    weights = load_file(file)
    weights["decoder.embed_tokens.weight"] = weights.pop("shared.weight")
    weights["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(8, 4)
    save_file(weights, file)

    ours = convert(tmp_path / "hf", tmp_path / "ours")
    expected = logits_of(theirs)
    found = load_model(ours)(SRC_BS, TGT_BT, src_mask_BS=SRC_MASK_BS)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    codec, library = Codec.open(ours), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert codec.start_tokens == ["<unk>"] and codec.config.specials.pad == "<s>"
    texts = ["<2de> ☃ x", *lines(300, seed=2)]
    assert [codec.src_vocab.ids(codec.encode(text)) for text in texts] == [[*library.encode(t), 2] for t in texts]
    assert "<2de>" in codec.encode(texts[0]) and "<0x98>" in codec.encode(texts[0])
