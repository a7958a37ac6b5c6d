"""`RopeConfig`, the rotary position embedding of a model and its scaling to longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.numbers import Count, Positive, Width
from onmt_llm.config.section import Section

RopeScaling = Literal["none", "linear", "dynamic", "yarn", "longrope", "llama3"]

ROPE_SETTINGS: Mapping[RopeScaling, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position"),
    "yarn": ("factor", "original_max_position", "beta_fast", "beta_slow", "truncate", "attention_factor"),
    "longrope": ("factor", "original_max_position", "short_factor", "long_factor", "attention_factor"),
    "llama3": ("factor", "original_max_position", "low_freq_factor", "high_freq_factor"),
}
"""The settings of `RopeConfig` that each scaling has."""


class RopeConfig(Section):
    """Rotary position embedding (RoPE, Su et al. 2021), in the half-split layout."""

    theta: Annotated[float, Field(gt=0, le=1e15)] = 10000.0
    """Base of the rotation frequencies."""
    local_theta: Annotated[float, Field(gt=0, le=1e15)] | None = None
    """Base in the layers with a sliding window, which `scaling` then leaves alone (Gemma 3); null = `theta`, scaled."""
    rotary_dim: Width | None = None
    """Rotated dimensions per head; null = all."""
    scaling: RopeScaling = "none"
    """Scaling of positions beyond the trained context length. With `dynamic` and `longrope` it depends on the length
    of the sequence."""
    factor: Positive = 1.0
    """Scaling factor; with `longrope` it only determines the `attention_factor`."""
    low_freq_factor: Positive = 1.0
    """`llama3`: wavelengths longer than original_max_position / low_freq_factor are divided by `factor`."""
    high_freq_factor: Positive = 4.0
    """`llama3`: wavelengths shorter than original_max_position / high_freq_factor are not scaled."""
    original_max_position: Count = 8192
    """All but `linear`: context length of the original training."""
    beta_fast: Positive = 32.0
    """`yarn`: frequencies with more turns than this within `original_max_position` are not scaled."""
    beta_slow: Positive = 1.0
    """`yarn`: frequencies with fewer turns than this within `original_max_position` are divided by `factor`."""
    truncate: bool = True
    """`yarn`: widen the range between `beta_fast` and `beta_slow` to whole dimensions."""
    short_factor: list[Positive] = []
    """`longrope`: divisor of each frequency in sequences up to `original_max_position`."""
    long_factor: list[Positive] = []
    """`longrope`: divisor of each frequency in longer sequences."""
    attention_factor: Positive | None = None
    """`yarn`, `longrope`: factor of the rotated dimensions of q and k; null = as their papers compute it."""

    @property
    def local(self) -> RopeConfig:
        """The settings of layers with a sliding window."""
        return self if self.local_theta is None else RopeConfig(theta=self.local_theta, rotary_dim=self.rotary_dim)

    @property
    def magnitude(self) -> float:
        """What the rotated dimensions of q and k are multiplied by."""
        if self.scaling not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None or self.factor <= 1.0:
            return self.attention_factor or 1.0
        if self.scaling == "yarn":
            return 0.1 * math.log(self.factor) + 1.0
        return math.sqrt(1.0 + math.log(self.factor) / math.log(self.original_max_position))

    def check(self, rotary_dim: int) -> None:
        """Check the settings for this number of rotated dimensions.

        Raises:
            ValueError: They do not fit it.
        """
        if rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even, but is {rotary_dim}")
        if self.scaling == "dynamic" and rotary_dim < 4:
            raise ValueError(f"rotary_dim must be >= 4 with rope.scaling: dynamic, but is {rotary_dim}")
        if self.scaling == "yarn" and self.theta <= 1.0:
            raise ValueError(f"rope.theta must be above 1 with rope.scaling: yarn, but is {self.theta}")
        if self.scaling != "longrope":
            return
        if self.original_max_position < 2:
            raise ValueError("rope.original_max_position must be >= 2 with rope.scaling: longrope, but is 1")
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != rotary_dim // 2:
                raise ValueError(
                    f"rope.{name} must have {rotary_dim // 2} numbers, half of rotary_dim, but has "
                    f"{len(getattr(self, name))}"
                )
