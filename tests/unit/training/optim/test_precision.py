"""Number formats of a run, loss scaling, and errors for losses that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from onmt_llm.errors import ConfigError, OnmtLlmError
from onmt_llm.training.optim.precision import (
    FIRST_LOSS_SCALE,
    GROWTH_INTERVAL,
    SMALLEST_LOSS_SCALE,
    Precision,
    choose_precision,
    non_finite_error,
    trainable_to_float32,
)
from onmt_llm.training.state import Progress

CPU = torch.device("cpu")
SCALED = Precision(torch.float32, autocast=torch.float16, scaled=True)


def choose(dtype: Any, **options: Any) -> Precision:
    return choose_precision(dtype, **{"lora": False, "loss_scale": 0.0, "device": CPU, **options})


@pytest.mark.parametrize(
    ("dtype", "options", "weights", "autocast"),
    [
        ("fp32", {}, torch.float32, None),
        ("bf16", {}, torch.float32, torch.bfloat16),
        ("fp16", {}, torch.float32, torch.float16),
        ("bf16", {"lora": True}, torch.bfloat16, None),
        ("bf16", {"expanded": True}, torch.bfloat16, torch.bfloat16),
        ("bf16", {"pure_bf16": True}, torch.bfloat16, None),
    ],
)
def test_weights_and_autocast(dtype: str, options: dict[str, Any], weights: torch.dtype, autocast: Any) -> None:
    precision = choose(dtype, **options)
    assert (precision.weights, precision.autocast, precision.scaled) == (weights, autocast, dtype == "fp16")
    with precision.compute(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (autocast or torch.float32)


@pytest.mark.parametrize(
    ("dtype", "options", "what"),
    [("bf16", {"lora": True}, "LoRA"), ("bf16", {"expanded": True}, "expanded blocks"), ("fp32", {}, "fp32")],
)
def test_pure_bf16_is_for_full_training_in_bf16(dtype: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=f"pure_bf16 needs full training in model_dtype: bf16.*{what}"):
        choose(dtype, pure_bf16=True, **options)


def test_the_scale_is_halved_at_an_overflow_and_doubled_after_many_good_updates() -> None:
    progress = Progress()
    SCALED.set_initial_scale(progress)
    assert progress.loss_scale == FIRST_LOSS_SCALE
    assert not SCALED.accept(progress, math.inf, step=1)
    assert progress.loss_scale == FIRST_LOSS_SCALE / 2
    assert all(SCALED.accept(progress, 1.0, step=2) for _ in range(GROWTH_INTERVAL - 1))
    assert progress.loss_scale == FIRST_LOSS_SCALE / 2
    assert SCALED.accept(progress, 1.0, step=3) and progress.loss_scale == FIRST_LOSS_SCALE
    SCALED.set_initial_scale(progress)
    assert progress.loss_scale == FIRST_LOSS_SCALE


def test_a_fixed_scale_stays() -> None:
    precision = Precision(torch.float32, scaled=True, fixed_scale=64.0)
    progress = Progress()
    precision.set_initial_scale(progress)
    assert not precision.accept(progress, math.inf, step=1)
    assert all(precision.accept(progress, 1.0, step=2) for _ in range(GROWTH_INTERVAL))
    assert progress.loss_scale == 64.0


def test_a_run_that_is_no_longer_scaled_drops_its_scale() -> None:
    progress = Progress()
    SCALED.set_initial_scale(progress)
    Precision(torch.float32).set_initial_scale(progress)
    assert progress.loss_scale == 1.0
    SCALED.set_initial_scale(progress)
    assert progress.loss_scale == FIRST_LOSS_SCALE


def test_a_loss_scale_of_one_is_kept_by_a_run_that_found_it() -> None:
    progress = Progress()
    SCALED.set_initial_scale(progress)
    while progress.loss_scale > 1.0:
        SCALED.accept(progress, math.inf, step=1)
    SCALED.set_initial_scale(progress)
    assert progress.loss_scale == 1.0


def test_what_scaling_cannot_help_ends_the_run() -> None:
    with pytest.raises(OnmtLlmError, match="gradient must be finite, but is inf at step 9"):
        Precision(torch.float32).accept(Progress(), math.inf, step=9)
    progress = Progress()
    SCALED.set_initial_scale(progress)
    progress.loss_scale = SMALLEST_LOSS_SCALE
    with pytest.raises(OnmtLlmError, match="gradient must be finite"):
        SCALED.accept(progress, math.inf, step=9)


def test_the_hint_depends_on_the_step() -> None:
    assert "first update" in str(non_finite_error("loss", float("inf"), 1).hint)
    assert "learning_rate" in str(non_finite_error("loss", float("inf"), 2).hint)


def test_only_trained_parameters_become_float32() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).bfloat16()
    model[0].requires_grad_(False)
    trainable_to_float32(model)
    assert [parameter.dtype for parameter in model.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
