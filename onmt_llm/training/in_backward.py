"""An update inside the backward pass: each parameter is stepped, and its gradient freed, as soon as that is complete.

So no more gradients exist at a time than the backward pass has just made, instead of one of each parameter (LOMO,
Lv et al. 2023). What depends on all gradients before any update, clipping above all, cannot go with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError


def check_in_backward(config: TrainConfig, world_size: int) -> None:
    """Make sure that nothing needs all gradients at once, if updates are to be done inside the backward pass.

    Raises:
        ConfigError: Something does; the message lists all of it.
    """
    run = config.run
    if not run.optimizer_in_backward:
        return
    obstacles = {
        f"accum_count is {run.accum_count}, whose micro-batches are added up: make batch_size larger": set(run.accum_count)
        != {1},
        f"max_grad_norm is {config.optimizer.max_grad_norm:g}, which needs the norm of all gradients: set it to 0": (
            config.optimizer.max_grad_norm > 0
        ),
        "model_dtype is fp16, whose updates may have to be skipped: take bf16": run.model_dtype == "fp16",
        f"{world_size} processes add up their gradients: take one": world_size > 1,
    }
    found = [reason for reason, stands in obstacles.items() if stands]
    if found:
        raise ConfigError(
            f"optimizer_in_backward must go with what needs no gradient but the one at hand, but {'; '.join(found)}."
        )


def backward_and_step(loss: Tensor, optimizer: Optimizer, *, factor: float) -> float:
    """The backward pass of `loss`, in which each parameter of the optimiser takes its step; no gradient is left.

    The steps are those of `optimizer.step()` after the backward pass, to the bit: the optimiser is shown one parameter
    at a time. Its state is the same too.

    Args:
        loss: Scalar, with its graph.
        optimizer: Holds no gradients yet.
        factor: Gradients are multiplied by it.

    Returns:
        The L2 norm of all gradients after that; inf or nan where one of them is.
    """
    groups = optimizer.param_groups
    norms: list[Tensor] = []
    last: list[dict[str, Any]] = [group for group in groups]

    def step(number: int, group: dict[str, Any], parameter: Tensor) -> None:
        ...
