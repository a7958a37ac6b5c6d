"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.cpu.fused import rms_norm


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


def build_head_norm(config: ModelConfig) -> nn.Module:
    """RMSNorm over one head of q or k (`qk_norm`), independent of the residual stream's norm."""
    return RMSNorm(config.size_per_head, eps=config.norm_eps)
