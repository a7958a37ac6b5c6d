"""Settings in which adapters differ from plain LoRA, and the tensors that an adapter consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onmt_llm.errors import ConfigError
from onmt_llm.nn import wrap

LoraInit = Literal["default", "pissa", "loftq"]
TRAINED_TENSORS = ("lora_a", "lora_b", "lora_magnitude")
"""Trained tensors of an adapter; only DoRA has the third."""
INITIAL_TENSORS = ("lora_start_a", "lora_start_b", "lora_shift_a", "lora_shift_b")
"""Fixed tensors of an adapter that did not start with B = 0; see `init.py`."""


@dataclass(frozen=True)
class LoRAVariant:
    """Settings in which adapters differ from plain LoRA, and from each other.

    Attributes:
        rslora: The scale is alpha / sqrt(rank), so that higher ranks learn as fast (Kalajdzievski 2023).
        dora: The norm of each row is trained apart from its direction (`dora.py`).
        rank_pattern: Ranks of single layers, by name as in `wrap.match`; the longest matching name counts.
        alpha_pattern: Alphas of single layers.
        init: Initial values of A and B (`init.py`).
        init_iter: Iterations of that initialisation; None = its default.
    """

    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init: LoraInit = "default"
    init_iter: int | None = None

    def size(self, path: str, rank: int, alpha: float) -> tuple[int, float]:
        """Rank and scale of the layer at `path`; `rank` and `alpha` are those of layers without a pattern."""
        rank = wrap.lookup(self.rank_pattern, path, rank)
        alpha = wrap.lookup(self.alpha_pattern, path, alpha)
        if rank < 1:
            raise ConfigError(f"lora_rank must be >= 1, but is {rank} for '{path}'.")
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)

    def initial_tensors(self) -> tuple[str, ...]:
        """The `INITIAL_TENSORS` that an adapter of a linear layer has."""
        if self.init == "default":
            return ()
        return INITIAL_TENSORS if self.init == "loftq" and (self.init_iter or 1) > 1 else INITIAL_TENSORS[:2]


PLAIN = LoRAVariant()
