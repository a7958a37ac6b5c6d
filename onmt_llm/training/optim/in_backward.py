"""An update inside the backward pass: each parameter is stepped, and its gradient freed, as soon as that is complete.

So at no time are there more gradients than the backward pass has just made, instead of one for each parameter (Lv et
al. 2023). What must know all gradients before any update, clipping above all, cannot go with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def backward_and_step(loss: Tensor, optimizer: Optimizer, *, factor: float) -> float:
    """The backward pass of `loss`, in which the parameters of `optimizer` take their steps; no gradient is left over.

    Steps and state are those of `optimizer.step()` after the backward pass, to the bit.

    Args:
        loss: Scalar, with its graph.
        optimizer: Its parameters have no gradients yet.
        factor: Gradients are multiplied by it.

    Returns:
        The L2 norm of all gradients after that; inf or nan where one of them is.
    """
    norms: list[Tensor] = []
    with _stepping(optimizer, factor, norms):
        loss.backward()
    return float(torch.linalg.vector_norm(torch.stack(norms))) * factor if norms else 0.0


@contextmanager
def _stepping(optimizer: Optimizer, factor: float, norms: list[Tensor]) -> Iterator[None]:
    """Inside, a parameter whose gradient is complete is stepped, and the norm that the gradient had goes to `norms`."""
    groups = optimizer.param_groups
    stepped: dict[int, dict[str, Any]] = {}

    def step(number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        norms.append(torch.linalg.vector_norm(parameter.grad))
        parameter.grad.mul_(factor)
        # The optimiser is shown this parameter alone, in a copy of its group.
        stepped[number] = {**groups[number], "params": [parameter]}
        optimizer.param_groups = [stepped[number]]
        optimizer.step()
        parameter.grad = None

    handles = [
        parameter.register_post_accumulate_grad_hook(partial(step, number))
        for number, group in enumerate(groups)
        for parameter in group["params"]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        optimizer.param_groups = groups
        # Some optimisers count their steps in the group: each parameter's copy has counted this one.
        for number, copy in stepped.items():
            groups[number].update({**copy, "params": groups[number]["params"]})
