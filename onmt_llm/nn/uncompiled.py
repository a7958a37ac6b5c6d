"""Functions that torch.compile leaves out, marked without importing the compiler.

`torch.compiler.disable` imports it at once, which takes 70 MB and more than half of the time in which a command starts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Marked = TypeVar("Marked", bound=Callable[..., Any])


class _Slot:
    """A function, which `leave_uncompiled` replaces by one that the compiler leaves out."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


_SLOTS: list[_Slot] = []


def uncompiled(function: Marked) -> Marked:
    """Mark a function that breaks the graph of compiled code, as `torch.compiler.disable` does."""
    marked = _Slot(function)
    _SLOTS.append(marked)

    @functools.wraps(function)
    def call(*inputs: Any, **named: Any) -> Any:
        return marked.function(*inputs, **named)

    return call  # type: ignore[return-value]


def leave_uncompiled() -> None:
    """Have torch.compile leave out the marked functions; must be called before anything is compiled."""
    while _SLOTS:
        marked = _SLOTS.pop()
        marked.function = torch.compiler.disable(marked.function)
