"""Histograms of lengths as coordinates."""

from __future__ import annotations

import random

import pytest

from onmt_llm.data.inspection.histograms import histogram
from onmt_llm.data.statistics import length_bin


@pytest.mark.parametrize("longest", [1, 10, 63, 64, 500, 100_000])
def test_columns_lie_in_the_box_and_count_every_example(longest: int) -> None:
    draw = random.Random(longest)
    lengths: dict[int, int] = {}
    for _ in range(300):
        place = length_bin(draw.randint(1, longest))
        lengths[place] = lengths.get(place, 0) + 1
    plot = histogram(lengths)
    assert len(plot.columns) <= 41
    counted = [int(column.label.split(": ")[1].split()[0].replace(",", "")) for column in plot.columns]
    assert sum(counted) == 300
    for column in plot.columns:
        assert 0 <= column.x < column.x + column.width <= plot.width and column.y >= 0
    tallest = max(plot.columns, key=lambda column: column.height)
    assert counted[plot.columns.index(tallest)] == max(counted)


def test_percentiles_are_labelled_on_the_side_that_has_space() -> None:
    plot = histogram({1: 98, 1000: 2})
    assert [mark.label for mark in plot.percentiles] == ["p50 1", "p90 1", "p99 1,000"]
    assert [mark.before for mark in plot.percentiles] == [False, False, True]


@pytest.mark.parametrize(("count", "label"), [(7, "7"), (1500, "1.5k"), (2_000_000, "2M"), (3_000_000_000, "3G")])
def test_the_scale_is_short(count: int, label: str) -> None:
    assert histogram({5: count}).marks[-1].label == label
