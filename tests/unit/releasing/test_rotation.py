"""A model with a rotated residual stream computes what the original does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing import NumberFormat, release
from onmt_llm.releasing.rotation import Rotation, rotated

BIASES = {"attn_bias": True, "attn_out_bias": True, "ffn_bias": True}
FALCON = {"position": "rotary", "kv_heads": 1, "parallel_residual": True, "tie_embeddings": True}
SHAPES: dict[str, ModelConfig] = {
    "llama, grouped, tied": tiny.llama(tie_embeddings=True, residual_scale=0.5, embedding_scale=3.0),
    "qwen 3": tiny.llama(qk_norm=True, head_dim=6, attn_bias=True, lm_head_bias=True),
    "falcon, one norm": tiny.config(**FALCON, shared_norm=True),
    "falcon, two norms": tiny.config(**FALCON),
    "gpt2": tiny.config(**BIASES, position="learned", tie_embeddings=True),
    "mpt": tiny.config(position="alibi", norm_bias=False, tie_embeddings=True),
    "shaw": tiny.config(position="shaw", relative_positions=4, kv_heads=2),
    "opennmt": tiny.seq2seq(scale_embeddings=True, src_vocab_size=17),
    "nllb": tiny.seq2seq(**BIASES, sinusoid="fairseq", share_embeddings=True, tie_embeddings=True),
    "t5": tiny.seq2seq(norm="rmsnorm", position="t5", relative_shared=True, scale_attention=False, scale_logits=True),
    "features": tiny.seq2seq(src_features=[{"vocab_size": 9, "size": 32}], feat_merge="sum"),
}


@pytest.mark.parametrize("size", [1, 17, 36, 64, 576])
@pytest.mark.parametrize("keeps_mean", [False, True])
def test_a_rotation_is_orthogonal_and_spreads_single_channels(size: int, keeps_mean: bool) -> None:
    matrix = Rotation(size, keeps_mean=keeps_mean)(torch.eye(size))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-5, rtol=0)
    if keeps_mean:
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(size), atol=1e-5, rtol=0)
    if size == 576:
        assert matrix.abs().max() < 0.2


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_the_logits_stay_the_same(tmp_path: Path, config: ModelConfig) -> None:
    vocab = {"src_vocab": tiny.tokens(17, "v")} if config.src_vocab_size else {}
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "m", config, norm_bias=0.2, **vocab))
    ids = tiny.token_ids(2, 9, high=17)
    inputs = (ids,) if config.is_decoder_only else (ids, ids.flip(1))
    features = {"features_BSF": ids[..., None] % 9} if config.src_features else {}
    expected, found = (loaded(one)(*inputs, **features) for one in (checkpoint, rotated(checkpoint)))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def loaded(checkpoint: Checkpoint) -> Transformer:
    model = Transformer(checkpoint.config.model).eval()
    for name in checkpoint.names():
        assert checkpoint.shape(name) == checkpoint.tensor(name).shape
        torch.testing.assert_close(torch.cat(list(checkpoint.blocks(name))), checkpoint.tensor(name))
    model.load_state_dict(dict(checkpoint.tensors()))
    return model


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny.config(norm_position="post"), "norm_position is post"),
        (tiny.config(embed_norm=True), "embed_norm is true"),
        (tiny.seq2seq(src_features=[{"vocab_size": 9, "size": 8}]), "feat_merge is concat"),
    ],
)
def test_what_cannot_be_rotated_is_released_plain_and_says_why(
    tmp_path: Path, caplog: Any, config: ModelConfig, reason: str
) -> None:
    caplog.set_level("INFO", logger="onmt_llm")
    model = tiny.write_checkpoint(tmp_path / "m", config)
    report = release(model, tmp_path / "plain", quantization="int8", verify="off")
    assert report["quality"] == "plain" and f"cannot be rotated: {reason}" in caplog.text
    with pytest.raises(UnsupportedError, match=reason):
        release(model, tmp_path / "out", quantization=NumberFormat("int8", "rotated"), verify="off")
