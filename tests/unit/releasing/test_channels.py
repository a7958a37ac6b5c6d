"""Scaled channels of feed-forward layers: the model computes the same, and int8 loses less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing import channels, release
from onmt_llm.releasing.channels import ScaledWeights, channel_scales
from onmt_llm.releasing.rotation import rotated

WORDS = " ".join(f"w{number}" for number in torch.randint(61, (1500,), generator=torch.Generator().manual_seed(0)))
CONFIGS = {
    "llama": tiny.llama(tie_embeddings=True),
    "gelu, with biases": tiny.llama(activation="gelu_tanh", ffn_bias=True, norm_position="both"),
    "not gated": tiny.config(),
}


def with_loud_channels(directory: Path, config: ModelConfig) -> Checkpoint:
    """A model with two inner channels of each feed-forward layer that are up to 40 times as large as the others."""
    with CheckpointWriter(directory, CheckpointConfig(model=config)) as writer:
        for name, parameter in tiny.build(config).named_parameters():
            tensor = torch.ones_like(parameter) if "norm" in name else 0.25 * torch.randn_like(parameter)
            if "up_proj" in name:
                tensor[[3, 17]] *= 40
            elif name.endswith("down_proj.weight"):
                tensor[:, [3, 17]] *= 0.1
            writer.add(name, tensor)
        tiny.write_vocab(writer.directory / "vocab.txt", tiny.tokens(config.vocab_size))
    return Checkpoint.open(directory)


@pytest.mark.parametrize("config", [CONFIGS["llama"], CONFIGS["gelu, with biases"]], ids=["llama", "gelu, with biases"])
@torch.no_grad()
def test_the_logits_stay_the_same(tmp_path: Path, config: ModelConfig) -> None:
    checkpoint = with_loud_channels(tmp_path / "m", config)
    scales = channel_scales(checkpoint, [[1, 2, 3, 4, 5], [6, 7]])
    assert all(scale_F[3] > 2 and scale_F.mean() == pytest.approx(1) for scale_F in scales.values())
    source = rotated(checkpoint) if config.norm_position == "pre" else checkpoint
    found = source.with_weights(source.config.model, ScaledWeights(source, scales))
    ids = tiny.token_ids(2, 9, high=20)
    expected, logits = (loaded(one)(ids) for one in (checkpoint, found))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def loaded(checkpoint: Checkpoint) -> Transformer:
    model = Transformer(checkpoint.config.model).eval()
    for name in checkpoint.names():
        torch.testing.assert_close(torch.cat(list(checkpoint.blocks(name))), checkpoint.tensor(name))
    model.load_state_dict(dict(checkpoint.tensors()))
    return model


def test_int8_loses_less_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level("INFO", logger="onmt_llm")
    model = with_loud_channels(tmp_path / "m", tiny.llama(vocab_size=64, hidden_size=64, ffn_size=96)).path
    before = release(model, tmp_path / "before", quantization="int8", verify="warn", text=WORDS)
    assert "channel_scales" not in before and "Channels are not scaled" in caplog.text
    monkeypatch.setattr(channels, "channel_text", lambda: WORDS[:3000])
    after = release(model, tmp_path / "after", quantization="int8", verify="warn", text=WORDS[3000:])
    assert after["channel_scales"] == "640 tokens of the package's channel_text.txt"  # of 781
    assert after["figures"]["mean_kl"] < 0.8 * before["figures"]["mean_kl"]


def test_what_is_not_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "channel_text", lambda: WORDS)
    for name, config in (("not gated", CONFIGS["not gated"]), ("encoder-decoder", tiny.seq2seq(ffn_gated=True))):
        checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / name, config))
        assert channels.scaled(checkpoint, checkpoint, checkpoint.codec()) == (checkpoint, 0)
