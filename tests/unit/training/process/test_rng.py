"""`training.rng`: random generators are restored exactly."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from onmt_llm.training.process.rng import rng_state, set_rng_state, set_seed

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), float(torch.rand(()))]


def test_random_generators_continue_where_they_were() -> None:
    random.seed(5)
    random.gauss(0, 1)  # leaves a second number in store
    saved = json.loads(json.dumps(rng_state(CPU)))
    expected = draws()
    draws()
    set_rng_state(saved, CPU)
    assert draws() == expected


def test_one_seed_serves_all_generators() -> None:
    set_seed(2**33 + 7)
    expected = draws()
    set_seed(2**33 + 7)
    assert draws() == expected


@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_what_is_no_state_is_refused(name: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        set_rng_state({**rng_state(CPU), name: ""}, CPU)
