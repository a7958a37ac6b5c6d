"""A process that stops is named, and ends the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from onmt_llm.errors import LostProcessError
from onmt_llm.training.process import pulse
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.pulse import SILENCE, Pulse, Report, suspects

RANKS = """
import sys, time
from pathlib import Path
import torch
from onmt_llm.log import setup_logging
from onmt_llm.training.process import pulse
from onmt_llm.training.process.dist import open_world

setup_logging()
pulse.INTERVAL, pulse.SILENCE = 0.1, 1.0
world = open_world("cpu", 2)
if world.rank == 1:
    import os
    Path(sys.argv[1]).write_text(str(os.getpid()))
with pulse.Pulse(world, limit=4.0) as own:
    for step in range(1, 10_000):
        own.beat(step)
        time.sleep(0.02)
        world.sum(torch.ones(1))
"""


def reports(*micro_batches: int, paused: int | None = None) -> dict[int, Report]:
    return {rank: Report(micro_batches=n, paused=rank == paused) for rank, n in enumerate(micro_batches)}


@pytest.mark.parametrize(
    ("found", "silent", "expected"),
    [
        (reports(5, 5, 5), {}, []),
        (reports(5, 4, 5), {}, [1]),
        (reports(5, 4, 5, paused=1), {}, []),
        (reports(5, 5, 5), {2: SILENCE + 1}, [2]),
        (reports(5, 5, 4, paused=2), {2: SILENCE + 1}, [2]),
    ],
)
def test_who_is_waited_for(found: dict[int, Report], silent: dict[int, float], expected: list[int]) -> None:
    none = dict.fromkeys(found, 0.0)
    assert list(suspects(found, {**none, **silent}, none)) == expected


def test_who_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 goes on, rank 2 has stopped reporting, rank 3 never reported; the own reports may be late."""
    numbers = iter([{0: 4, 1: 4, 2: 4}, {0: 4, 1: 5, 2: 4}])

    def read(*_: object) -> dict[int, Report]:
        return {rank: Report(step=7, host="h", pid=rank, number=number) for rank, number in next(numbers).items()}

    class Store:
        def compare_set(self, key: str, old: str, new: str) -> bytes:
            return new.encode()

    monkeypatch.setattr(pulse, "open_store", lambda _: Store())
    monkeypatch.setattr(pulse, "_reports", read)
    monkeypatch.setattr(pulse, "INTERVAL", 0.0)
    monkeypatch.setattr(pulse.signal, "signal", lambda *_: None)
    error = Pulse(World(0, 4, torch.device("cpu")), limit=1.0)._lost()
    assert isinstance(error, LostProcessError)
    expected = "but rank 2 (host h, process 2) died in step 7; rank 3 died before its first report."
    assert error.message.endswith(expected)


def test_a_stopped_process_is_named_and_all_end(tmp_path: Path) -> None:
    script, pid = tmp_path / "ranks.py", tmp_path / "pid"
    script.write_text(RANKS)
    run = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(pid)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    deadline = time.monotonic() + 120
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    stopped = int(pid.read_text())
    time.sleep(2)
    os.kill(stopped, signal.SIGSTOP)
    _, log = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "Rank 1" in log and f"process {stopped}" in log and "the run ends" in log
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
