"""Derived seeds of a pipeline specification."""

from __future__ import annotations

import subprocess
import sys

from onmt_llm.data.spec import derived_seed


def test_a_seed_depends_on_all_its_parts() -> None:
    seeds = {derived_seed(seed, name, number) for seed in (1, 2) for name in ("a", "b") for number in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 1 << 31 for seed in seeds)
    assert derived_seed("a", 1) != derived_seed("a1")


def test_a_seed_is_the_same_in_every_process() -> None:
    program = "from onmt_llm.data.spec import derived_seed; print(derived_seed(7, 'corpus', 3))"
    done = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert {int(each.stdout) for each in done} == {derived_seed(7, "corpus", 3)}
