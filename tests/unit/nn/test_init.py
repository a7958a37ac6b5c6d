"""Weight initialisation: the table of `init_weights`."""

from __future__ import annotations

import math

import pytest
import torch

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.resize_embeddings import resize_embeddings
from onmt_llm.nn.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=200, hidden_size=64, heads=4, ffn_size=128, encoder_layers=1, decoder_layers=2, ffn_bias=True
)


@pytest.mark.parametrize(
    ("settings", "up_std", "down_std", "bias_std"),
    [
        (dict(glorot=True), math.sqrt(2 / 192), math.sqrt(2 / 192), 0.0),
        (dict(glorot=False, param_init=0.1), 0.1 / math.sqrt(3), 0.1 / math.sqrt(3), 0.1 / math.sqrt(3)),
        (dict(glorot=True, param_init=0.1), math.sqrt(2 / 192), math.sqrt(2 / 192), 0.1 / math.sqrt(3)),
        (dict(glorot=False), 1 / 8, 1 / math.sqrt(128 * 4), 0.0),
    ],
    ids=["glorot", "uniform", "both", "by inputs"],
)
def test_table(settings: dict, up_std: float, down_std: float, bias_std: float) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 9.0)
    init_weights(model, **settings)
    block = model.decoder.layers[1]
    assert block.mlp.up_proj.weight.std().item() == pytest.approx(up_std, rel=0.05)
    assert block.mlp.down_proj.weight.std().item() == pytest.approx(down_std, rel=0.05)
    assert block.mlp.up_proj.bias.std().item() == pytest.approx(bias_std, rel=0.2)
    assert (block.attn_norm.weight == 1).all() and (block.attn_norm.bias == 0).all()
    assert all((p.abs() < 9).all() for p in model.parameters())


def test_same_seed_same_weights() -> None:
    states = []
    for _ in range(2):
        model = Transformer(CONFIG)
        torch.manual_seed(3)
        init_weights(model)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize(("encoder_layers", "embeddings"), [(1, 0.4), (0, 1.0)], ids=["encoder-decoder", "decoder"])
def test_by_default_attention_and_predictions_start_nearly_uniform(
    encoder_layers: int, embeddings: float, width: int
) -> None:
    """Whatever the width: what small models learn depends on it (docs/benchmarks/learning.md)."""
    torch.manual_seed(0)
    shape = {"vocab_size": 200, "hidden_size": width, "heads": 4, "ffn_size": 4 * width, "position": "t5"}
    config = ModelConfig.model_validate({**shape, "encoder_layers": encoder_layers, "decoder_layers": 2})
    model = Transformer(config)
    init_weights(model, glorot=False)
    ids = torch.randint(0, 200, (4, 16))
    logits = model(ids, ids) if encoder_layers else model(ids)
    assert 0.3 < logits.std().item() < 0.55
    attention = model.decoder.layers[0].self_attn
    assert attention.q_proj.weight.std().item() == pytest.approx(0.2 / math.sqrt(width), rel=0.05)
    assert not attention.relative_bias.weight.any()
    drawn = {"new": model.decoder.embed_tokens.weight}
    new_rows: list[int | None] = [None] * 200
    resize_embeddings(model, config, tgt=new_rows, src=new_rows)
    drawn["of another vocabulary"] = model.decoder.embed_tokens.weight
    for weight in drawn.values():
        assert weight.std().item() == pytest.approx(embeddings / math.sqrt(width), rel=0.05)
