"""Change a model for inference: joined projections, packed weights, a faster norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.nn.inference.attention import FusedAttention
from onmt_llm.nn.inference.packed import (
    Packed4Linear,
    Packed8Linear,
    has_bf16_kernels,
    has_packed_kernels,
    is_joinable,
    is_packable_to_4_bits,
    linear,
    packed,
)
from onmt_llm.nn.inference.position_wise import FusedFeedForward, rms_norm
from onmt_llm.nn.layers.attention import Attention
from onmt_llm.nn.layers.position_wise import FeedForward, RMSNorm, TiedHead, TokenEmbedding
from onmt_llm.nn.lora.layers import LoRAEmbedding, LoRALinear
from onmt_llm.nn.quantized import Int8Linear, quantize_rows
from onmt_llm.nn.transformer import Transformer


class RowEmbedding(nn.Module):
    """Looks tokens up in a table of 16 or 8 bits per element; the vectors are float32.

    Args:
        weight: (V, D), in any type; it is neither a parameter nor a buffer, so `.float()` leaves it as it is.
        scale: (V,), which the rows of an int8 table are multiplied by.
    """

    def __init__(self, weight: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.scale = weight.detach(), scale

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        rows_BTD = F.embedding(ids_BT, self.weight).float()
        return rows_BTD if self.scale is None else rows_BTD.mul_(self.scale[ids_BT].unsqueeze(-1))


def fuse_for_inference(model: Transformer, *, in_4_bits: bool = False) -> Transformer:
    """Change a model in place so that it computes the same in less time, without gradients.

    - q, k and v of each self-attention become one product, and so do gate and up of each feed-forward layer.
    - On an x86 processor weights of 8 and 16 bits are packed for kernels that read them as they are. Those in bf16
      compute in bf16 if the processor has instructions for it; all others in float32, as does the rest of the model. A
      tied output layer of an int8 model becomes int8 too.

    Layers that cannot be joined (latent attention, cross-attention, layers with an adapter) stay as they are. Each
    layer's old weights are freed before the next is built.

    Args:
        model: In eval mode, with its weights.
        in_4_bits: Round the linear layers inside the blocks to 4 bits. The model must be in bf16, without an adapter,
            on a processor that `has_bf16_kernels`.

    Returns:
        The same model.
    """
    _replace(model, _fused)
    device = next(model.parameters()).device
    if device.type != "cpu":
        return model
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.kernel = rms_norm
    if in_4_bits:
        for stack in (model.encoder, model.decoder):
            if stack is not None:
                _replace(stack, _in_4_bits)
    if _is_packable(model):
        _pack(model)
    return model


def _in_4_bits(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Linear) or not is_packable_to_4_bits(module):
        return module
    new = Packed4Linear(module.weight, module.bias)
    del module.weight
    return new


def _replace(model: nn.Module, new: Callable[[nn.Module], nn.Module]) -> None:
    """Replace every module for which `new` returns another."""
    for path, module in list(model.named_modules()):
        other = new(module)
        if other is not module:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, other.eval())


def _fused(module: nn.Module) -> nn.Module:
    if type(module) is Attention and not module.cross:
        is_fusable = is_joinable([module.q_proj, module.k_proj, module.v_proj])
        return FusedAttention(module) if is_fusable else module
    if type(module) is FeedForward and is_joinable([module.gate_proj, module.up_proj]):
        return FusedFeedForward(module)
    return module


def _is_packable(model: nn.Module) -> bool:
    modules = list(model.modules())
    if not has_packed_kernels() or any(isinstance(module, LoRALinear | LoRAEmbedding) for module in modules):
        return False
    if any(isinstance(module, Int8Linear) for module in modules):
        return True
    return bool({torch.float16, torch.bfloat16} & {parameter.dtype for parameter in model.parameters()})


def _pack(model: Transformer) -> None:
    has_int8 = any(isinstance(module, Int8Linear) for module in model.modules())
    types = {parameter.dtype for parameter in model.parameters()}
    in_bf16 = torch.bfloat16 in types and torch.float16 not in types and not has_int8 and has_bf16_kernels()
    embedding = None if model.decoder is None else model.decoder.embed_tokens
    if isinstance(model.lm_head, TiedHead) and isinstance(embedding, TokenEmbedding):
        weight, bias = embedding.weight, model.lm_head.bias
        if has_int8:
            quantized, scale = quantize_rows(weight.detach())
            model.lm_head = Packed8Linear(quantized, scale, bias)
            model.decoder.embed_tokens = RowEmbedding(quantized, scale)  # type: ignore[union-attr]
        else:
            model.lm_head = packed(linear(weight, bias), in_bf16=in_bf16)

    def replacement(module: nn.Module) -> nn.Module:
        if not in_bf16 and isinstance(module, TokenEmbedding) and module.weight.dtype != torch.float32:
            return RowEmbedding(module.weight)
        return packed(module, in_bf16=in_bf16)

    _replace(model, replacement)
    if not in_bf16:
        model.float()
