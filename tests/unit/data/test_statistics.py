"""Counts per corpus: sums, percentiles, and their way through JSON."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from onmt_llm.data.statistics import CorpusCounts, bin_width, length_bin, percent, percentile


def counts(number: int) -> CorpusCounts:
    return CorpusCounts(
        read=number,
        made=1,
        kept=number - 1,
        dropped=Counter(filtertoolong=2),
        truncated=3,
        tokens=10 * number,
        trained=5 * number,
        unknown=number,
        lengths=Counter({4: number, 64: 1}),
        suspect=Counter(zero_bytes=1),
    )


def test_bins_are_exact_below_64_and_within_3_percent_above() -> None:
    assert [length_bin(length) for length in range(64)] == list(range(64))
    for length in random.Random(1).sample(range(64, 1 << 20), 200):
        assert 0 <= length - length_bin(length) < bin_width(length) <= 0.04 * length
        assert length_bin(length_bin(length)) == length_bin(length)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.25, 1), (0.5, 2), (0.9, 9), (1.0, 9)])
def test_percentiles_of_counted_lengths(share: float, expected: int) -> None:
    assert percentile({9: 1, 1: 1, 2: 2}, share) == expected
    assert percentile({}, share) == 0


def test_parts_add_up() -> None:
    whole = counts(3)
    whole.add(counts(5))
    assert (whole.read, whole.made, whole.kept, whole.tokens) == (8, 2, 6, 80)
    assert whole.dropped == {"filtertoolong": 4} and whole.lengths == {4: 8, 64: 2} and whole.suspect["zero_bytes"] == 2


def test_json_loses_nothing() -> None:
    whole = counts(3)
    assert CorpusCounts.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    assert CorpusCounts.from_dict({"read": 4}) == CorpusCounts(read=4)


def test_figures_and_summary_say_the_same() -> None:
    figures, summary = counts(10).figures(), counts(10).summary()
    assert figures["dropped/filtertoolong"] == 2 and figures["suspect/zero_bytes"] == 1
    assert (figures["unknown_rate"], figures["median_length"]) == (0.1, 4)
    for fragment in (
        "read 10",
        "1 with zero bytes",
        "made 1 more",
        "kept 9",
        "truncated 3",
        "filtertoolong 2",
        "50.00%",
    ):
        assert fragment in summary
    assert "dropped: none" in CorpusCounts().summary() and percent(1, 0) == "100.00%"
