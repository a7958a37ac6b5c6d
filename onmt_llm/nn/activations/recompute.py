"""Activation checkpointing: recompute activations in the backward pass instead of storing them (Chen et al. 2016).

The parts of a model that can be recomputed, by OpenNMT-py's names, and one more:

- `mha`: each attention, self or cross, with the norm before it. Its input is stored.
- `ffn`: each feed-forward layer, with the norm before it. Its input is stored.
- `lora`: the inputs of adapters after dropout and casts. The output of A, `rank` wide, is stored.
- `block`: each block of the model as a whole. Its input is stored.

The last linear layer of the first two is not recomputed: the backward pass does not need its output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def set_recomputed(model: nn.Module, parts: Collection[str]) -> None:
    """Change which parts of a model are recomputed, in all modules that have an attribute `recomputed`."""
    for module in model.modules():
        if hasattr(module, "recomputed"):
            module.recomputed = parts  # type: ignore[assignment]


def recompute(module: nn.Module, function: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    """function(*inputs, **named), storing only the inputs for the backward pass.

    Args:
        module: The module that `function` uses. If it has dropout, the state of the random generator is stored too.
        function: Computes the same result, and saves the same tensors for backward, each time.
        inputs: Its arguments.
        named: Its keyword arguments.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=_has_dropout(module), **named)


def _has_dropout(module: nn.Module) -> bool:
    return module.training and any(getattr(part, "dropout", 0.0) > 0 for part in module.modules())
