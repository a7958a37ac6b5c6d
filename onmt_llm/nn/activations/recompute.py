"""Activations that are computed again in the backward pass, instead of being kept for it (Chen et al. 2016).

The parts of a model for which that can be had, by the names that OpenNMT-py gave them, and one more:

- `mha`: each attention, self or cross, with the norm before it. Kept is its input.
- `ffn`: each feed-forward layer, with the norm before it. Kept is its input.
- `lora`: what adapters make of their inputs. Kept is what is `rank` wide.
- `block`: each block of the model as a whole. Kept is its input.

The last linear layer of the first two is not computed again: nothing needs its result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def set_recomputed(model: nn.Module, parts: Collection[str]) -> None:
    """Change which parts of a model are computed again: those of its modules that have an attribute `recomputed`."""
    for module in model.modules():
        if hasattr(module, "recomputed"):
            module.recomputed = parts  # type: ignore[assignment]


def recompute(module: nn.Module, function: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    """function(*inputs, **named), of which nothing is kept but the inputs.

    Args:
        module: What `function` computes with. The state of the random numbers is kept too if it has dropout.
        function: Computes the same, and saves the same for backward, each time.
        inputs: Its arguments.
        named: More of them.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=_drops(module), **named)


def _drops(module: nn.Module) -> bool:
    return module.training and any(getattr(part, "dropout", 0.0) > 0 for part in module.modules())
