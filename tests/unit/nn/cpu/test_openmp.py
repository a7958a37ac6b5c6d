"""OpenMP threads spin on a quiet machine and sleep beside other processes (docs/benchmarks/neighbours.md)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from onmt_llm.nn.cpu.openmp import SET_BY_USER, SHORT_SLICE, Neighbours, busy_seconds

linux = pytest.mark.skipif(sys.platform != "linux", reason="libgomp and /proc are Linux'")

STAT = """cpu  900 0 90 9000 5 0 9 7 0 0
cpu0 100 10 20 5000 3 1 2 400 0 0
cpu1 800 5 70 4000 2 0 7 300 0 0
intr 12345 0 0
"""


def test_work_of_processes_counts_and_idle_waiting_and_stolen_time_do_not() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(STAT, [0]) == 133 / tick
    assert busy_seconds(STAT, [0, 1]) == (133 + 882) / tick


def test_crowded_while_others_take_processors_that_threads_need() -> None:
    neighbours = Neighbours(processors=2)
    assert not neighbours.update(0.1, threads=2) and not neighbours.crowded
    assert neighbours.update(0.7, threads=2) and neighbours.crowded
    assert [neighbours.update(0.0, threads=2) for _ in range(5)] == [False] * 4 + [True]
    assert not neighbours.crowded


def test_a_short_pause_of_the_others_changes_nothing() -> None:
    neighbours = Neighbours(processors=2)
    neighbours.update(1.0, threads=2)
    for _ in range(20):
        assert not neighbours.update(0.0, threads=2)
        assert not neighbours.update(0.2, threads=2)
    assert neighbours.crowded


def test_processors_that_no_thread_needs_are_for_others() -> None:
    neighbours = Neighbours(processors=64)
    assert not neighbours.update(20.0, threads=32)
    assert neighbours.update(40.0, threads=32)


WATCHED = """
import threading
import torch
torch.set_num_threads(2)
from onmt_llm.nn.cpu import openmp
def watching(): return sum(thread.name == "openmp-watch" for thread in threading.enumerate())
openmp.watch()
first = watching()
openmp.watch()
openmp.watch("cuda")
print(first, watching())
"""
TEAM = """
import os, time
import torch
from onmt_llm.nn.cpu import openmp
def threads(): return len(os.listdir("/proc/self/task"))
torch.ones(1).add_(1)
before = threads()
team = openmp._IdleTeam(openmp._libgomp(), 5)
while threads() != before + 5: time.sleep(0.01)
team.end()
while threads() != before: time.sleep(0.01)
"""
SLICES = """
import os, platform, threading
from onmt_llm.nn.cpu import openmp
os.nice(5)
stop = threading.Event()
threading.Thread(target=stop.wait).start()
def attributes(thread):
    import ctypes
    buffer = ctypes.create_string_buffer(openmp._SCHED_ATTR.size)
    call = openmp._SCHED_SETATTR[platform.machine()] + 1
    assert not ctypes.CDLL(None).syscall(call, thread, buffer, openmp._SCHED_ATTR.size, 0)
    return openmp._SCHED_ATTR.unpack(buffer.raw)
def all_attributes(): return [attributes(int(thread)) for thread in os.listdir("/proc/self/task")]
before = all_attributes()
openmp.request_slices(openmp.SHORT_SLICE)
during = all_attributes()
openmp.request_slices(openmp.DEFAULT_SLICE)
assert all_attributes() == before
stop.set()
assert [row[3] for row in during] == [row[3] for row in before]
print(*{row[5] for row in during}, *{row[5] for row in before})
"""


def _run(code: str, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_USER} | variables
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@linux
@pytest.mark.parametrize("variable", [None, *SET_BY_USER])
def test_one_watch_for_a_process_unless_the_user_has_chosen(variable: str | None) -> None:
    assert _run(WATCHED, **({} if variable is None else {variable: "PASSIVE"})) == (
        ["1", "1"] if variable is None else ["0", "0"]
    )


@linux
def test_idle_threads_stay_until_their_team_ends() -> None:
    _run(TEAM)


@linux
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="numbers of system calls")
def test_slices_change_for_all_threads_and_back_and_the_nice_value_stays() -> None:
    during, before = map(int, _run(SLICES))
    # Linux before 6.12 gives no slices to threads and reports 0.
    assert (during == SHORT_SLICE < before) or (during == before == 0)
