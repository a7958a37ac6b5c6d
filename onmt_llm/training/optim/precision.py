"""Mixed precision: number formats of a run, and loss scaling.

One rule: trained parameters are float32, frozen ones `model_dtype`.

- LoRA: the base is stored in `model_dtype` and computes in it; adapters are float32 and are cast when they are used.
- Expanded blocks: the base is stored in `model_dtype`, the new blocks in float32; `torch.autocast` casts them.
- Full training in bf16 or fp16: weights are float32, and `torch.autocast` computes in `model_dtype`. That takes 16
  bytes per parameter with Adam, and needs nothing else to keep small updates from being rounded away.
- `pure_bf16` is the exception: trained parameters are bf16, and the optimiser keeps their rounding errors (`kahan.py`).
- fp16 has a small range, so the loss is scaled: by a fixed `loss_scale`, or by one that is halved when a gradient
  overflows and doubled after `GROWTH_INTERVAL` good updates (Micikevicius et al. 2018).
"""

from __future__ import annotations

import math
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onmt_llm.config.model import Dtype
from onmt_llm.errors import ConfigError, OnmtLlmError
from onmt_llm.log import log_once, logger
from onmt_llm.nn.device import DTYPES
from onmt_llm.training.state import Progress

# The loss is a sum over tokens, not a mean, so its gradients are large already: start far below the usual 2^16.
FIRST_LOSS_SCALE = 256.0
SMALLEST_LOSS_SCALE = 2.0**-14
GROWTH_INTERVAL = 2000


@dataclass(frozen=True)
class Precision:
    """Number formats of a run.

    Attributes:
        weights: Type that the model is built in; frozen weights keep it.
        autocast: Type that `torch.autocast` computes in; None = no autocast.
        scaled: The loss is scaled (float16).
        fixed_scale: The user's loss scale; 0 = dynamic.
    """

    weights: torch.dtype
    autocast: torch.dtype | None = None
    scaled: bool = False
    fixed_scale: float = 0.0

    def compute(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context for the forward pass."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)

    def set_initial_scale(self, progress: Progress) -> None:
        """Set the initial loss scale, unless the run has one."""
        if not self.scaled:
            progress.loss_scale = 1.0
        elif self.fixed_scale:
            progress.loss_scale = self.fixed_scale
        elif progress.loss_scale == 1.0 and not progress.scaled:
            progress.loss_scale = FIRST_LOSS_SCALE
        progress.scaled = self.scaled

    def accept(self, progress: Progress, grad_norm: float, *, step: int) -> bool:
        """Whether to apply the update; adapts the loss scale.

        Args:
            progress: Holds the loss scale.
            grad_norm: Norm of all gradients.
            step: For messages.

        Raises:
            OnmtLlmError: A gradient is not finite without loss scaling, or with the smallest scale.
        """
        if math.isfinite(grad_norm):
            progress.good_steps += 1
            if self.scaled and not self.fixed_scale and progress.good_steps >= GROWTH_INTERVAL:
                progress.loss_scale, progress.good_steps = progress.loss_scale * 2, 0
            return True
        progress.good_steps = 0
        if not self.scaled or progress.loss_scale <= SMALLEST_LOSS_SCALE:
            raise non_finite_error("gradient", grad_norm, step)
        if not self.fixed_scale:
            progress.loss_scale /= 2
        logger.info(
            "Step %d: a gradient overflowed, the update is skipped; loss scale is now %g.", step, progress.loss_scale
        )
        return False


def choose_precision(
    model_dtype: Dtype,
    *,
    lora: bool,
    loss_scale: float,
    device: torch.device,
    pure_bf16: bool = False,
    expanded: bool = False,
) -> Precision:
    """Number formats of a run with `model_dtype`.

    Args:
        model_dtype: The option.
        lora: Only adapters are trained.
        loss_scale: The option.
        device: Device of the model.
        pure_bf16: Trained parameters are bf16.
        expanded: Only expanded blocks are trained.

    Raises:
        ConfigError: `pure_bf16` with adapters or expanded blocks, or with another type.
    """
    if pure_bf16 and (lora or expanded or model_dtype != "bf16"):
        what = "LoRA, whose adapters are float32" if lora else f"model_dtype: {model_dtype}"
        what = "expanded blocks, which are float32" if expanded else what
        raise ConfigError(
            f"pure_bf16 needs full training in model_dtype: bf16, but this run has {what}.",
            hint="leave it out",
        )
    dtype = DTYPES[model_dtype]
    if model_dtype == "fp16" and device.type == "cpu":
        log_once("model_dtype fp16 is slow on a CPU; bf16 or fp32 is the better choice there.")
    if model_dtype == "bf16" and device.type == "cpu" and emulates_bf16():
        log_once("This CPU has no bf16 instructions: model_dtype fp32 takes more memory, but is several times as fast.")
    mixed = not lora and not pure_bf16 and model_dtype != "fp32"
    return Precision(
        weights=torch.float32 if mixed and not expanded else dtype,
        autocast=dtype if mixed else None,
        scaled=model_dtype == "fp16",
        fixed_scale=loss_scale,
    )


def emulates_bf16() -> bool:
    """Whether this is an x86 processor that emulates bf16, at a fifth of the speed of float32."""
    return platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported()


def trainable_to_float32(model: nn.Module) -> None:
    """Convert the trainable parameters to float32, in place."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def non_finite_error(what: str, value: float, step: int) -> OnmtLlmError:
    """The error for a loss or gradient that is no longer finite."""
    hint = (
        "lower learning_rate, set max_grad_norm, add warmup_steps or use model_dtype bf16 or fp32; resume from the "
        "last checkpoint with -train_from"
    )
    if step == 1:
        hint = (
            "this is the first update, so check how the weights are initialised (param_init, train_from, "
            "both_embeddings, src_embeddings, tgt_embeddings) and how the loss is computed (model_dtype fp16, "
            "norm_eps, lora_alpha, neftune_noise_alpha, loss_scale, lambda_align, lm_prior_tau, dpo_beta)"
        )
    return OnmtLlmError(f"The {what} must be finite, but is {value} at step {step}.", hint=hint)
