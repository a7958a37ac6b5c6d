"""Optimiser in the backward pass: a parameter is updated, and its gradient freed, once the gradient is complete.

So only the most recent gradients are in memory, instead of one for each parameter (Lv et al. 2023). Whatever needs all
gradients before an update, such as clipping, cannot be combined with it.
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
    """Run the backward pass of `loss` and update the parameters of `optimizer` in it; no gradient remains.

    Updates and state are bit-identical to those of `optimizer.step()` after the backward pass.

    Args:
        loss: Scalar, with its graph.
        optimizer: Its parameters have no gradients yet.
        factor: Factor of the gradients.

    Returns:
        The L2 norm of all gradients after scaling; inf or nan if any gradient is.
    """
    norms: list[Tensor] = []
    with _stepping(optimizer, factor, norms):
        loss.backward()
    return float(torch.linalg.vector_norm(torch.stack(norms))) * factor if norms else 0.0


@contextmanager
def _stepping(optimizer: Optimizer, factor: float, norms: list[Tensor]) -> Iterator[None]:
    """A context in which a parameter is updated when its gradient is complete; the gradients' norms go to `norms`."""
    groups = optimizer.param_groups
    stepped: dict[int, dict[str, Any]] = {}

    def step(number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        norms.append(torch.linalg.vector_norm(parameter.grad))
        parameter.grad.mul_(factor)
        # The optimiser sees only this parameter, in a copy of its group.
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
        # Some optimisers count steps in the group; the copies have counted this one.
        for number, copy in stepped.items():
            groups[number].update({**copy, "params": groups[number]["params"]})
