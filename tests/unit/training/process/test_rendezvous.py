"""The processes of an attempt find each other, whatever earlier attempts have left in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from onmt_llm.training.process.rendezvous import agree

SIZE = 3


def attempt(store: HashStore, ranks: list[int], *, seconds: float = 20) -> set[str]:
    with ThreadPoolExecutor(SIZE) as pool:
        return set(pool.map(lambda rank: agree(store, rank, SIZE, timeout=timedelta(seconds=seconds)), ranks))


def test_each_attempt_has_a_name_of_its_own() -> None:
    store = HashStore()
    names = [attempt(store, ranks) for ranks in ([0, 1, 2], [2, 1, 0], [1, 0, 2])]
    assert [len(name) for name in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


@pytest.mark.parametrize("ranks", [[1, 2], [0, 2]])
def test_processes_that_died_while_they_waited_disturb_no_later_attempt(ranks: list[int]) -> None:
    store = HashStore()
    with pytest.raises(RuntimeError):
        attempt(store, ranks, seconds=0.3)
    assert len(attempt(store, [0, 1, 2])) == 1


def test_who_is_missing_is_named() -> None:
    with pytest.raises(RuntimeError, match="the processes 1, 2 are not there after"):
        agree(HashStore(), 0, SIZE, timeout=timedelta(seconds=0.2))
