"""The position-wise feed-forward layer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.cpu.dropout import dropout, relu_dropout
from onmt_llm.nn.cpu.fused import silu_mul

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (Shazeer 2020).

    Attributes:
        silu_mul: Computes silu(gate) * up, by Liger's kernel if `kernels.py` has set it.
    """

    silu_mul: Callable[[Tensor, Tensor], Tensor] = staticmethod(silu_mul)

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.ffn_size, config.ffn_bias
        self.dropout = dropout
        self.activation = ACTIVATIONS[config.activation]
        self.gate_proj = nn.Linear(size, inner, bias=bias) if config.ffn_gated else None
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate_proj is not None:
            gate, up = self.gate_proj(x_BTD), self.up_proj(x_BTD)
            inner = self.silu_mul(gate, up) if self.activation is F.silu else self.activation(gate) * up
        elif self.activation is F.relu:
            return self.down_proj(relu_dropout(self.up_proj(x_BTD), self.dropout, self.training))
        else:
            inner = self.activation(self.up_proj(x_BTD))
        return self.down_proj(dropout(inner, self.dropout, self.training))
