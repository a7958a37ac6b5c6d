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
    """Type of the weights while training: float32, bfloat16, or float16 (with float32 adapters and loss scaling)."""
    pure_bf16: bool = False
    """Train the whole model in bf16 weights (with `model_dtype: bf16` and `optim: adamw`): what bf16 would round away
    of an update is kept beside each weight (Kahan summation), instead of float32 weights that are cast when used."""
    use_ckpting: list[Literal["block", "mha", "ffn", "lora"]] = Field(default_factory=list)
    """Parts that are computed again in the backward pass, to save memory: whole blocks, attentions, feed-forward
    layers, what adapters make of their inputs (which is much with `lora_dropout` alone)."""
    offload_activations: bool = False
    """What the blocks keep for the backward pass waits in main memory instead of on the GPU."""
    optimizer_in_backward: bool = False
    """Update each parameter inside the backward pass, as soon as its gradient is complete, and free that: whole models
    are then trained without ever holding all gradients. Needs `accum_count: 1`, `max_grad_norm: 0` and one process."""
    kernels: Literal["auto", "torch", "liger"] = "torch"
    """Whose kernels compute norms and gated activations on a GPU: torch's, or those of the package liger-kernel; `auto`
    = the latter where they are installed."""
    compile_blocks: bool = False
    """Compile each block by torch.compile, which needs a C++ compiler and takes some time when training begins."""
    loss_chunk_tokens: CountOrZero = 0
    """Trained positions that go through the output layer and the loss together, so that the logits of a whole batch
    never exist; 0 = as many as the device likes."""
