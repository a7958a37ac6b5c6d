"""The layers that treat every position alone: embedding and tied output layer, norms, feed-forward."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.cpu.dropout import dropout, relu_dropout
from onmt_llm.nn.cpu.fused import rms_norm, silu_mul


def _squared_relu(x: Tensor) -> Tensor:
    """So et al. 2021."""
    return F.relu(x).square()


def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss' gated activation: neither gate nor up grows beyond 7, and up has an offset."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu2": _squared_relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "clamped_swiglu": clamped_swiglu,
}
"""Of the inner values; `clamped_swiglu` of gate and up together."""


def capped(x: Tensor, softcap: float | None) -> Tensor:
    """Within (-softcap, softcap), by the hyperbolic tangent; None = as it is."""
    return x if softcap is None else softcap * torch.tanh(x / softcap)


class TokenEmbedding(nn.Embedding):
    """A vector per token; `project` uses the transposed matrix as the output layer."""

    def reset_parameters(self) -> None:
        """Initialise the weight as torch does, unless it is on the meta device, where torch would import its compiler
        to do nothing (70 MB, a second)."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def project(self, x_BTD: Tensor) -> Tensor:
        """Logits of all tokens, (B, T, V): the output layer of a model with tied embeddings."""
        return F.linear(x_BTD, self.weight)


class TiedHead(nn.Module):
    """Output layer without a matrix of its own: it uses the decoder's embedding, wrapped or not.

    The embedding is an argument of each call instead of a shared parameter. So loading, quantising, wrapping and
    sharding need not tie the weights again, and no weight is counted or saved twice.
    """

    def __init__(self, vocab_size: int, *, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def forward(self, x_BTD: Tensor, embedding: nn.Module) -> Tensor:
        """Logits (B, T, V); `embedding` is a TokenEmbedding or a LoRAEmbedding around one."""
        logits_BTV = embedding.project(x_BTD)  # type: ignore[operator]
        return logits_BTV if self.bias is None else logits_BTV + self.bias


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm (Zhang & Sennrich 2019), with a backward pass that needs less memory on a CPU.

    It computes in float32 and rounds once, so in bf16 it is closer to the exact result than the usual sequence of
    upcast, downcast and scaling.

    Attributes:
        kernel: Replacement (x, weight, eps) -> y, e.g. Liger's; see `kernels.py`.
    """

    kernel: Callable[[Tensor, Tensor, float], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x, self.weight, self.eps)  # type: ignore[arg-type]
        if x.device.type != "cpu":
            return super().forward(x)
        return rms_norm(x, self.weight, self.eps)  # type: ignore[arg-type]


def build_norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    """The norm of `config` over a last dimension of `size` (default: hidden_size)."""
    size = size or config.hidden_size
    if config.norm == "rmsnorm":
        return RMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)


class HeadLayerNorm(nn.Module):
    """LayerNorm of each head by itself, without a bias and with weights of its own for each (Cohere, 2024).

    Args:
        heads: Number of heads.
        size: Width of a head.
        eps: Epsilon.
    """

    def __init__(self, heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads * size))
        self.eps = eps

    def forward(self, x_BTNH: Tensor) -> Tensor:
        weight_NH = self.weight.float().view(x_BTNH.shape[-2:])
        normal_BTNH = F.layer_norm(x_BTNH.float(), x_BTNH.shape[-1:], eps=self.eps)
        return (normal_BTNH * weight_NH).to(x_BTNH.dtype)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)


def build_head_norm(config: ModelConfig, heads: int) -> nn.Module:
    """The norm of one or all of the `heads` of q or k (`qk_norm`), independent of the residual stream's norm."""
    if config.qk_norm_type == "layernorm":
        return HeadLayerNorm(heads, config.size_per_head, config.norm_eps)
    size = config.size_per_head * (heads if config.qk_norm_over == "all_heads" else 1)
    return RMSNorm(size, eps=config.norm_eps)


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (Shazeer 2020).

    Args:
        config: The model.
        size: Inner width; None = `ffn_size`.
        dropout: Of the inner activations.

    Attributes:
        silu_mul: Computes silu(gate) * up, by Liger's kernel if `kernels.py` has set it.
    """

    silu_mul: Callable[[Tensor, Tensor], Tensor] = staticmethod(silu_mul)

    def __init__(self, config: ModelConfig, *, size: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        inner, bias = size or config.ffn_size, config.ffn_bias
        self.dropout = dropout
        self.activation = ACTIVATIONS[config.activation]
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=bias) if config.ffn_gated else None
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate_proj is not None:
            inner = self._gated(self.gate_proj(x_BTD), self.up_proj(x_BTD))
        elif self.activation is F.relu:
            return self.down_proj(relu_dropout(self.up_proj(x_BTD), self.dropout, self.training))
        else:
            inner = self.activation(self.up_proj(x_BTD))
        return self.down_proj(dropout(inner, self.dropout, self.training))

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.activation is F.silu:
            return self.silu_mul(gate, up)
        return clamped_swiglu(gate, up) if self.activation is clamped_swiglu else self.activation(gate) * up
