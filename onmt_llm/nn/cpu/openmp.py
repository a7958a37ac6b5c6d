"""How torch's CPU threads wait for each other: spinning on an idle machine, sleeping next to other busy processes.

Each operation of torch's CPU build ends at a barrier of its OpenMP threads. By default a thread that arrives early
spins, which is fastest while no one else needs its processor. Next to another busy process it is slowest: the spinning
thread occupies the processor that the late thread needs. `OMP_WAIT_POLICY=PASSIVE` makes threads sleep instead, but is
read only once, when the library is loaded, whereas a run lasts for hours while other processes start and end.

libgomp, the OpenMP library of torch's Linux builds, hardly spins while a process has more OpenMP threads than
processors (its manual, GOMP_SPINCOUNT). So a second team of idle threads makes all threads sleep at barriers;
when it ends, they spin again. `watch` keeps such a team only while other processes use processors that torch's threads
need. During that time the threads also ask the scheduler for short time slices (sched_setattr(2); Linux 6.12 and later
heed it): they get no more processor time, but they get it sooner after they wake up, so all threads of an operation run
at about the same time. Reasons and figures: docs/decisions/021, docs/benchmarks/neighbours.md.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from onmt_llm.log import logger

SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables that control how threads wait; if one is set, nothing is changed."""
_CPU_TIMES = Path("/proc/stat")
_FIRST_PAUSE, _INTERVAL = 0.1, 1.0  # seconds
_BUSY, _QUIET = 0.3, 0.15  # processors that others take from torch's threads
_QUIET_MEASUREMENTS = 5
SHORT_SLICE, DEFAULT_SLICE = 100_000, 0
"""Time slices in nanoseconds: the shortest that Linux accepts, and the value that restores the kernel's own."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # number of the system call; that of sched_getattr follows
_SCHED_ATTR = struct.Struct("IIQiIQQQ")  # struct sched_attr: size, policy, flags, nice, priority, runtime, ...


def watch(device_type: str = "cpu") -> None:
    """Start to watch the processors, once per process.

    Does nothing on a GPU, outside Linux, with one thread, with another OpenMP library, or if the user has set a policy.

    Args:
        device_type: Where the model computes.
    """
    if device_type != "cpu" or torch.get_num_threads() < 2 or any(name in os.environ for name in SET_BY_USER):
        return
    library = _libgomp()
    if library is not None and not any(isinstance(thread, _Watch) for thread in threading.enumerate()):
        _Watch(library).start()


class Neighbours:
    """Decides, from the load of other processes, whether threads should sleep at barriers.

    Args:
        processors: Number that this process may use.

    Attributes:
        crowded: The decision.
    """

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._quiet_measurements = 0
        self.crowded = False

    def update(self, others: float, threads: int) -> bool:
        """Add a measurement; returns whether the decision has changed.

        Args:
            others: Processors that other processes have used since the last measurement.
            threads: Threads of this process that run at once.
        """
        taken = others - max(0, self._processors - threads)
        self._quiet_measurements = self._quiet_measurements + 1 if taken < _QUIET else 0
        before = self.crowded
        self.crowded = taken > _BUSY or (before and self._quiet_measurements < _QUIET_MEASUREMENTS)
        return self.crowded != before


class _Watch(threading.Thread):
    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(name="openmp-watch", daemon=True)
        self._library = library

    def run(self) -> None:
        cpus = os.sched_getaffinity(0)
        neighbours, team = Neighbours(len(cpus)), None
        last, pause = _measure(cpus), _FIRST_PAUSE
        while True:
            time.sleep(pause)
            now, pause = _measure(cpus), _INTERVAL
            busy, own, elapsed = (after - before for before, after in zip(last, now, strict=True))
            last = now
            if not neighbours.update((busy - own) / elapsed, torch.get_num_threads()):
                continue
            if neighbours.crowded:
                team = _IdleTeam(self._library, len(cpus) + 1)
                request_slices(SHORT_SLICE)
                logger.info(
                    "Other processes use %.1f of %d processors: torch's threads sleep while they wait for each other.",
                    *((busy - own) / elapsed, len(cpus)),
                )
            elif team is not None:
                team.end()
                request_slices(DEFAULT_SLICE)
                logger.info("The processors are free again: torch's threads spin while they wait for each other.")


class _IdleTeam:
    """OpenMP threads that sleep until `end`; enough for libgomp to count more threads than processors."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(library, threads), name="openmp-idle", daemon=True)
        self._thread.start()

    def _hold(self, library: ctypes.CDLL, threads: int) -> None:
        # A parallel region with an empty body; its threads live as long as the thread that started it.
        nothing = ctypes.cast(library.omp_get_num_threads, ctypes.c_void_p)
        library.GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
        self._end.wait()

    def end(self) -> None:
        self._end.set()
        self._thread.join()


def request_slices(nanoseconds: int) -> None:
    """Ask the scheduler for a time slice, for all threads of this process; new threads inherit it.

    Policy and nice value stay. Threads with another policy than SCHED_OTHER are left alone, and kernels without slices
    per thread ignore the request.

    Args:
        nanoseconds: Length of a slice; 0 for the kernel's default.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    system_call = ctypes.CDLL(None).syscall
    attributes = ctypes.create_string_buffer(_SCHED_ATTR.size)
    for thread in map(int, os.listdir("/proc/self/task")):
        if system_call(number + 1, thread, attributes, _SCHED_ATTR.size, 0):
            continue  # it has ended
        size, policy, flags, nice, priority, _runtime, *rest = _SCHED_ATTR.unpack(attributes.raw)
        if policy == os.SCHED_OTHER:
            _SCHED_ATTR.pack_into(attributes, 0, size, policy, flags, nice, priority, nanoseconds, *rest)
            system_call(number, thread, attributes, 0)


def _measure(cpus: Iterable[int]) -> tuple[float, float, float]:
    """Processor seconds on `cpus` of all processes, those of this process, and the time."""
    return busy_seconds(_CPU_TIMES.read_text(encoding="ascii"), cpus), time.process_time(), time.monotonic()


def busy_seconds(stat: str, cpus: Iterable[int]) -> float:
    """Busy seconds of processors, from the text of /proc/stat.

    Args:
        stat: Content of the file, see proc_stat(5).
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
    """torch's OpenMP library if it is libgomp; None if it is another one or the system has no /proc."""
    folder = Path(torch.__file__).parent / "lib"
    with suppress(OSError, AttributeError):
        _CPU_TIMES.read_bytes()
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        path = next((file for file in folder.glob("libgomp*") if str(file.resolve()) in loaded), None)
        library = None if path is None else ctypes.CDLL(str(path))
        if library is not None and library.GOMP_parallel and library.omp_get_num_threads:
            return library
    return None
