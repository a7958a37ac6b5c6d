"""The kernels of a model on a GPU: torch's, or Liger's (Hsu et al. 2024) for norms and gated activations.

Attention always uses torch's scaled_dot_product_attention, which has several kernels.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cuda

from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.layers.position_wise import FeedForward, RMSNorm
from onmt_llm.optional import require

_POSITIONS = 128


def resolve_kernels(wanted: Literal["auto", "torch", "liger"], device_type: str) -> Literal["torch", "liger"]:
    """The kernels that `wanted` selects on a type of device.

    Raises:
        ConfigError: Liger's are requested without a GPU.
    """
    if wanted == "liger" and device_type != "cuda":
        hint = "kernels: torch serves every device"
        raise ConfigError(f"kernels: liger needs a GPU, but the device is {device_type}.", hint=hint)
    installed = device_type == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    return "liger" if wanted == "liger" or (wanted == "auto" and installed) else "torch"


def use_liger(model: nn.Module) -> int:
    """Use Liger's kernels for RMSNorm and SwiGLU; returns the number of such layers.

    Raises:
        UnsupportedError: The package is missing.
    """
    norms = require("liger_kernel.ops.rms_norm", "kernels: liger", "liger-kernel").LigerRMSNormFunction
    products = require("liger_kernel.ops.swiglu", "kernels: liger", "liger-kernel").LigerSiLUMulFunction

    def norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        # As in llama: weights without an offset; gradients are not computed in place.
        return norms.apply(x, weight_D, eps, 0.0, "llama", False)

    layers = 0
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.kernel = norm
            layers += 1
        elif isinstance(module, FeedForward) and module.gate_proj is not None and module.activation is F.silu:
            module.silu_mul = products.apply
            layers += 1
    return layers


def attention_kernel(config: ModelConfig, dtype: torch.dtype, *, dropout: float, masked: bool) -> str:
    """Name of the kernel that scaled_dot_product_attention uses for a decoder's self-attention on this GPU.

    Args:
        config: Shape of the model.
        dtype: Number format of the computation.
        dropout: Of the attention weights.
        masked: There is a mask tensor besides causality.
    """
    shape = (1, config.heads, _POSITIONS, config.size_per_head)
    q = torch.empty(shape, dtype=dtype, device="cuda")
    mask = torch.ones(_POSITIONS, _POSITIONS, dtype=torch.bool, device="cuda") if masked else None
    parameters = cuda.SDPAParams(q, q, q, mask, dropout, not masked, False)
    if cuda.flash_sdp_enabled() and cuda.can_use_flash_attention(parameters):
        return "flash attention"
    if cuda.mem_efficient_sdp_enabled() and cuda.can_use_efficient_attention(parameters):
        return "memory-efficient attention"
    return "plain attention, which materialises all scores"
