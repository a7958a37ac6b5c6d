"""GGUF files of T5 and its successors: an encoder-decoder with a SentencePiece Unigram model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_families_seq2seq import GATED, T5, distance, logits_of, save_model
from parity.test_t5_text import spiece  # noqa: F401  the fixture
from safetensors.torch import load_file
from ten_scripts import lines

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.gguf.architectures import MODEL_TYPES
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError
from onmt_llm.text.codec import Codec

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
protobuf = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

LONG = {**T5, "vocab_size": 928, "eos_token_id": 1, "relative_attention_max_distance": 128}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", LONG),
    "t5 1.1, untied": ("t5", {**LONG, **GATED, "tie_word_embeddings": False}),
    "mt5 untied": ("mt5", {**LONG, **GATED, "d_kv": 6}),
    "umt5": ("umt5", {**LONG, **GATED}),
}
QUICK = ("t5", "umt5")


def without_charsmap(spiece: bytes) -> bytes:  # noqa: F811
    """A SentencePiece model without its table of characters, whose 240,000 bytes the gguf package reads one by one."""
    model = protobuf.ModelProto.FromString(spiece)
    model.normalizer_spec.ClearField("precompiled_charsmap")
    return bytes(model.SerializeToString())


def write_t5(file: Path, directory: Path, spiece: bytes, *, start: int = 0) -> None:  # noqa: F811
    """The model of transformers in `directory` as llama.cpp's converter writes it."""
    config = transformers.AutoConfig.from_pretrained(directory)
    writer = gguf.GGUFWriter(file, "t5")
    writer.add_context_length(512)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.num_layers)
    writer.add_decoder_block_count(config.num_decoder_layers)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_decoder_start_token_id(start)
    add_unigram(writer, spiece, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, config.num_layers)
    for name, tensor in load_file(directory / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_unigram(writer: Any, spiece: bytes, rows: int) -> None:  # noqa: F811
    """The pieces, and unused tokens for the rows beyond them; the keys of special tokens are left out."""
    model = protobuf.ModelProto.FromString(spiece)
    unused = rows - len(model.pieces)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(
        [one.piece for one in model.pieces] + [f"[PAD{len(model.pieces) + i}]" for i in range(unused)]
    )
    writer.add_token_scores([one.score for one in model.pieces] + [-10000.0] * unused)
    writer.add_token_types([one.type for one in model.pieces] + [5] * unused)
    writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(model.normalizer_spec.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)


def test_every_family_is_here() -> None:
    assert {kind for kind, _ in CASES.values()} == set(MODEL_TYPES["t5"])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path, spiece: bytes, name: str) -> None:  # noqa: F811
    kind, settings = CASES[name]
    theirs = save_model(tmp_path / "hf", kind, settings, untied="untied" in name)
    write_t5(tmp_path / "model.gguf", tmp_path / "hf", without_charsmap(spiece))
    ours = convert(tmp_path / "model.gguf", tmp_path / "ours")
    expected = logits_of(theirs)
    assert expected.std() > 0.1
    assert distance(ours, theirs) <= 1e-5 * max(1.0, float(expected.abs().max()))
    hf = convert(tmp_path / "hf", tmp_path / "from_hf", tokenizer_model="none")
    assert Checkpoint.open(ours).config.model == Checkpoint.open(hf).config.model


@pytest.mark.slow
def test_texts_are_those_of_the_spiece_model(tmp_path: Path, spiece: bytes) -> None:  # noqa: F811
    save_model(tmp_path / "hf", "t5", LONG)
    (tmp_path / "hf/tokenizer.json").unlink()
    (tmp_path / "hf/tokenizer_config.json").unlink()
    (tmp_path / "hf/spiece.model").write_bytes(spiece)
    write_t5(tmp_path / "model.gguf", tmp_path / "hf", spiece)
    ours, other = (
        Codec.open(convert(tmp_path / source, tmp_path / f"from_{source}")) for source in ("model.gguf", "hf")
    )
    assert list(ours.vocab) == list(other.vocab) and "<extra_id_99>" in ours.vocab
    assert ours.config.specials == other.config.specials
    assert (ours.start_tokens, ours.source_frame) == (["<pad>"], ([], ["</s>"]))
    texts = [*lines(200, seed=2), "ﬁne  ①②\tＡ", "a  b "]
    assert [ours.encode(text) for text in texts] == [other.encode(text) for text in texts]
    write_t5(tmp_path / "model.gguf", tmp_path / "hf", spiece, start=928)
    with pytest.raises(CheckpointError, match=r"decoder_start_token_id must be .* but is 928"):
        convert(tmp_path / "model.gguf", tmp_path / "wrong")
