"""Offloaded activations give the same gradients. Here they go from the CPU to itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from onmt_llm.nn.activations import offload
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.transformer import Transformer, set_dropout, set_offload

CROSSING = dict(encoder_layers=1, norm_position="post", share_embeddings=True, tie_embeddings=True)


def gradients(model: Transformer) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    ids_BT = tiny.token_ids(2, 7)
    model(*[ids_BT] * (2 if model.encoder is not None else 1)).logsumexp(-1).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("parts", [set(), {"mha"}, {"block"}])
@pytest.mark.parametrize("extra", [tiny.LLAMA, CROSSING])
def test_gradients_stay(extra: dict[str, Any], parts: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(tiny.config(vocab_size=50, **extra))
    set_dropout(model.train(), 0.1, 0.1)
    set_recomputed(model, parts)
    expected, sent = gradients(model), []
    send = offload._send
    monkeypatch.setattr(offload, "_send", lambda tensor: sent.append(tensor.shape) or send(tensor))
    set_offload(model, smallest=1, home=("cpu",))
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))
    layers = len(model.decoder.layers) + (0 if model.encoder is None else len(model.encoder.layers))
    assert len(sent) == layers if parts == {"block"} and model.encoder is None else len(sent) >= layers
    with torch.no_grad():
        model(*[torch.ones(1, 3, dtype=torch.long)] * (2 if model.encoder is not None else 1))


def test_what_goes() -> None:
    weight, x = torch.ones(8, 8), torch.ones(8, 8)
    away = offload.Offload([weight], smallest=64, home=("cpu",))
    assert away._pack(weight.t()).data_ptr() == weight.data_ptr()
    assert away._pack(x[:7]).data_ptr() == x.data_ptr()
    first = away._pack(x)
    assert isinstance(first, offload.OffloadedTensor) and away._pack(x) is first and away._pack(x.t()) is not first
    x.add_(1)
    second = away._pack(x)
    assert second is not first
    assert float(away._unpack(first).sum()) == 64 and float(away._unpack(second).sum()) == 128
    assert isinstance(offload.Offload([weight])._pack(x), Tensor)
