"""Cutting buckets into batches."""

from __future__ import annotations

import random
from typing import Any

import pytest

from onmt_llm.data.bucket import cut_batches


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize(("batch_type", "batch_size"), [("sents", 5), ("tokens", 30), ("tokens", 3)])
def test_every_example_is_in_one_batch_of_allowed_size(batch_type: Any, batch_size: int, multiple: int) -> None:
    draw = random.Random(2)
    for number in range(40):
        widths = [draw.randint(1, 12) for _ in range(number)]
        cuts = cut_batches(widths, batch_size=batch_size, batch_type=batch_type, multiple=multiple)
        assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])][: len(cuts)]
        assert not widths or cuts[-1][1] == number
        for start, end in cuts:
            size = (end - start) * (max(widths[start:end]) if batch_type == "tokens" else 1)
            assert end > start and (size <= batch_size or end - start == 1)
        assert all((end - start) % multiple == 0 or end - start < multiple for start, end in cuts[:-1])


def test_an_example_wider_than_a_batch_is_alone() -> None:
    assert cut_batches([2, 9, 2, 2], batch_size=6, batch_type="tokens") == [(0, 1), (1, 2), (2, 4)]


def test_no_examples_make_no_batch() -> None:
    assert cut_batches([], batch_size=6, batch_type="tokens") == []
