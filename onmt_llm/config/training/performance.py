"""Precision, memory and speed of training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onmt_llm.config.model import Dtype
from onmt_llm.config.numbers import CountOrZero
from onmt_llm.config.section import Section


class PerformanceConfig(Section):
    """Precision, memory and speed of training."""

    model_dtype: Dtype = "fp32"
    """Weight type during training: float32, bfloat16 or float16 (with float32 adapters and loss scaling)."""
    pure_bf16: bool = False
    """Train bfloat16 weights without a float32 copy (needs `model_dtype: bf16` and `optim: adamw`). Kahan summation
    keeps what rounding would lose of each update."""
    use_ckpting: list[Literal["block", "mha", "ffn", "lora"]] = Field(default_factory=list)
    """Activation checkpointing: parts to recompute in the backward pass to save memory. `block` = whole blocks, `mha` =
    attention, `ffn` = feed-forward layers, `lora` = the inputs of adapters (large only with `lora_dropout`)."""
    offload_activations: bool = False
    """Keep the activations of the blocks in main memory instead of GPU memory until the backward pass."""
    optimizer_in_backward: bool = False
    """Update each parameter during the backward pass as soon as its gradient is complete, then free the gradient; the
    gradients of the whole model never exist at once. Needs `accum_count: 1`, `max_grad_norm: 0` and one process."""
    kernels: Literal["auto", "torch", "liger"] = "torch"
    """Kernels for norms and gated activations on a GPU: torch's or those of the liger-kernel package; `auto` = Liger if
    installed."""
    compile_blocks: bool = False
    """Compile each block with torch.compile; needs a C++ compiler and delays the first step."""
    loss_chunk_tokens: CountOrZero = 0
    """Target tokens that pass through the output layer and the loss at once, so the logits of a whole batch never
    exist; 0 = a size that suits the device."""
