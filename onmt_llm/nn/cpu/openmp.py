"""How torch's threads on a CPU wait for each other: by spinning on a quiet machine, asleep beside other programs.

Each operation of torch's CPU build ends at a barrier of its OpenMP threads. By default a thread that is there early
spins, which is the fastest way while the processors are its own. Beside another busy process it is the slowest one: the
thread that spins holds the processor that the late thread waits for. `OMP_WAIT_POLICY=PASSIVE` makes threads sleep
instead, but is read only once, when the library is loaded, while a run lasts for hours and its neighbours come and go.

libgomp, the OpenMP library of torch's Linux builds, shortens the spinning to nearly nothing while a process has more
OpenMP threads than processors (its manual, GOMP_SPINCOUNT). So a second team of idle threads makes all threads sleep at
barriers, and its end makes them spin again. `watch` keeps such a team exactly while other processes use processors that
torch's threads need. Why, and figures: docs/decisions/021, docs/benchmarks/neighbours.md.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from onmt_llm.log import logger

SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables that say how threads wait; where one is set, nothing is changed."""
_CPU_TIMES = Path("/proc/stat")
_FIRST_LOOK, _INTERVAL = 0.1, 1.0  # seconds
_BUSY, _QUIET = 0.3, 0.15  # processors of torch's own threads that others take
_QUIET_LOOKS = 5


def watch(device_type: str = "cpu") -> None:
    """Watch the processors from now on, once for the process; a no-op where there is nothing to decide.

    That is: on a GPU, off Linux, with one thread, with another OpenMP library, or where the user has chosen a policy.

    Args:
        device_type: Where the model computes.
    """
    if device_type != "cpu" or torch.get_num_threads() < 2 or any(name in os.environ for name in SET_BY_USER):
        return
    library = _libgomp()
    if library is not None and not any(isinstance(thread, _Watch) for thread in threading.enumerate()):
        _Watch(library).start()


class Neighbours:
    """Decides from what others use whether threads should sleep at barriers.

    Args:
        processors: How many this process may use.

    Attributes:
        crowded: The decision.
    """

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._quiet_looks = 0
        self.crowded = False

    def update(self, others: float, threads: int) -> bool:
        """Take one more look into account; returns whether the decision has changed.

        Args:
            others: Processors that other processes used since the last look.
            threads: Threads of this process that want to run at once.
        """
        taken = others - max(0, self._processors - threads)
        self._quiet_looks = self._quiet_looks + 1 if taken < _QUIET else 0
        before = self.crowded
        self.crowded = taken > _BUSY or (before and self._quiet_looks < _QUIET_LOOKS)
        return self.crowded != before


class _Watch(threading.Thread):
    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(name="openmp-watch", daemon=True)
        self._library = library

    def run(self) -> None:
        cpus = os.sched_getaffinity(0)
        neighbours, team = Neighbours(len(cpus)), None
        last, pause = _look(cpus), _FIRST_LOOK
        while True:
            time.sleep(pause)
            now, pause = _look(cpus), _INTERVAL
            busy, own, elapsed = (after - before for before, after in zip(last, now, strict=True))
            last = now
            if not neighbours.update((busy - own) / elapsed, torch.get_num_threads()):
                continue
            if neighbours.crowded:
                team = _IdleTeam(self._library, len(cpus) + 1)
                logger.info(
                    "Other processes use %.1f of %d processors: torch's threads sleep while they wait for each other.",
                    *((busy - own) / elapsed, len(cpus)),
                )
            elif team is not None:
                team.end()
                logger.info("The processors are free again: torch's threads spin while they wait for each other.")


class _IdleTeam:
    """OpenMP threads that sleep until the end; as many as make libgomp count more threads than processors."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(library, threads), name="openmp-idle", daemon=True)
        self._thread.start()

    def _hold(self, library: ctypes.CDLL, threads: int) -> None:
        # A parallel region whose body does nothing; its threads stay as long as the one that began it.
        nothing = ctypes.cast(library.omp_get_num_threads, ctypes.c_void_p)
        library.GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
        self._end.wait()

    def end(self) -> None:
        self._end.set()
        self._thread.join()


def _look(cpus: Iterable[int]) -> tuple[float, float, float]:
    """Seconds of processor time on `cpus` by all processes, seconds by this one, and the time."""
    return busy_seconds(_CPU_TIMES.read_text(encoding="ascii"), cpus), time.process_time(), time.monotonic()


def busy_seconds(stat: str, cpus: Iterable[int]) -> float:
    """Seconds that processors have worked for processes of this system, in the text of /proc/stat.

    Args:
        stat: The file's content, see proc_stat(5).
        cpus: Numbers of the processors.
    """
    names = {f"cpu{cpu}" for cpu in cpus}
    ticks = 0
    for name, *columns in map(str.split, stat.splitlines()):
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, columns[:7])
            ticks += user + nice + system + irq + softirq
    return ticks / os.sysconf("SC_CLK_TCK")


def _libgomp() -> ctypes.CDLL | None:
    """The OpenMP library that torch computes with, or None where it is another one or the system has no /proc."""
    folder = Path(torch.__file__).parent / "lib"
    with suppress(OSError, AttributeError):
        _CPU_TIMES.read_bytes()
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        path = next((file for file in folder.glob("libgomp*") if str(file.resolve()) in loaded), None)
        library = None if path is None else ctypes.CDLL(str(path))
        if library is not None and library.GOMP_parallel and library.omp_get_num_threads:
            return library
    return None
