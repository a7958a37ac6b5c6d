"""Feed-forward layer and RMSNorm for inference.

Shapes: I is the inner width of the feed-forward layer.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from onmt_llm.nn.inference.packed import joined
from onmt_llm.nn.layers.position_wise import FeedForward, clamped_swiglu


class FusedFeedForward(nn.Module):
    """A gated feed-forward layer whose gate_proj and up_proj are one layer.

    Args:
        layer: The gated `FeedForward` that it replaces; its gate_proj and up_proj lose their weights.
    """

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        assert layer.gate_proj is not None
        self.activation = layer.activation
        self.gate_up_proj = joined([layer.gate_proj, layer.up_proj])
        self.down_proj = layer.down_proj

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); any leading shape is allowed."""
        gate_BTI, up_BTI = self.gate_up_proj(x_BTD).chunk(2, dim=-1)
        if self.activation is clamped_swiglu:
            return self.down_proj(clamped_swiglu(gate_BTI, up_BTI))
        return self.down_proj(self.activation(gate_BTI).mul_(up_BTI))


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32 and rounded once.

    For a few rows it needs a third of the time of torch's, which consists of several operations on a CPU too.
    """
    x_float = x.float()
    norm = torch.linalg.vector_norm(x_float, dim=-1, keepdim=True)
    inverse = torch.addcmul(_constant(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return (x_float * inverse).mul_(weight_D).to(x.dtype)


@functools.cache
def _constant(value: float) -> Tensor:
    """A number as a tensor, into which an operation would otherwise convert it each time."""
    with torch.inference_mode(False):
        return torch.tensor(value)
