"""Coordinates of histograms for an SVG template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onmt_llm.data.statistics import bin_width, percentile

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP = 560, 150, 44, 24, 20
_COLUMNS = 40
_LEAST_COLUMNS = 8
_LABEL = 90
"""Maximum width of a percentile label."""


@dataclass(frozen=True)
class Column:
    """One column and its tooltip."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A labelled position: of an axis or a percentile.

    Attributes:
        x: Distance from the left.
        y: Distance from the top.
        label: Text of the label.
        before: The label is to the left, since there is no room on the right.
    """

    x: float
    y: float
    label: str
    before: bool = False


@dataclass(frozen=True)
class Plot:
    """A histogram in a box of `width` x `height`.

    Attributes:
        width: Total width, with the scale on the left.
        height: Total height, without the scale below.
        columns: Columns from left to right.
        marks: Marks of the scale on the left.
        ticks: Marks of the scale below.
        percentiles: Median and other percentiles.
    """

    width: int
    height: int
    columns: list[Column]
    marks: list[Mark]
    ticks: list[Mark]
    percentiles: list[Mark]


def histogram(lengths: Mapping[int, int]) -> Plot:
    """Histogram of examples by length.

    Columns are a power of two wide, so that the bins of `counts.length_bin` never straddle two of them. The scale
    begins at the shortest length.
    """
    shortest, longest = min(lengths), max(lengths)
    step = bin_width(longest)
    while longest // step - shortest // step >= _COLUMNS:
        step *= 2
    first = shortest // step
    number = max(longest // step - first + 1, _LEAST_COLUMNS)
    heights = [0] * number
    for length, count in lengths.items():
        heights[length // step - first] += count
    highest, wide = max(heights), (_WIDTH - _LEFT - _RIGHT) / number

    def x(length: float) -> float:
        return round(_LEFT + (length / step - first) * wide, 2)

    def y(count: float) -> float:
        return round(_TOP + _HEIGHT * (1 - count / highest), 2)

    columns = [
        Column(
            x((first + place) * step),
            y(count),
            round(max(wide - 1, 0.5), 2),
            round(_TOP + _HEIGHT - y(count), 2),
            f"{_range((first + place) * step, step)} tokens: {count:,} examples",
        )
        for place, count in enumerate(heights)
        if count
    ]
    every = max(number // 8, 1)
    return Plot(
        width=_WIDTH,
        height=_HEIGHT,
        columns=columns,
        marks=[Mark(0, y(highest * part), _short(highest * part)) for part in (0, 0.5, 1)],
        ticks=[Mark(x(place * step), 0, f"{place * step:,}") for place in range(first, first + number, every)],
        percentiles=_percentiles(lengths, x),
    )


def _percentiles(lengths: Mapping[int, int], x: Callable[[float], float]) -> list[Mark]:
    found = [(name, percentile(lengths, share)) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))]
    # one below the other, since they may be close together
    return [
        Mark(x(length), 8 + 13 * row, f"{name} {length:,}", before=x(length) > _WIDTH - _LABEL)
        for row, (name, length) in enumerate(found)
    ]


def _range(low: int, step: int) -> str:
    return f"{low:,}" if step == 1 else f"{low:,}–{low + step - 1:,}"


def _short(count: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"
