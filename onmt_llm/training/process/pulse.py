"""Finding out that a process of a run hangs or has died, which one, and ending the run instead of waiting for hours.

Each process tells the others once per second, through the store that torchrun offers, how far it is. A process that has
stopped, or that is behind while the others wait for it, is named in the log, and ends the run after a time limit. If
the connection to a process is lost, the ones that no longer report are named.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from onmt_llm.errors import LostProcessError
from onmt_llm.log import logger
from onmt_llm.training.process.dist import World, is_lost_process
from onmt_llm.training.process.rendezvous import open_store

INTERVAL = 1.0
"""Seconds between two messages of a process."""
SILENCE = 10.0
"""Seconds without a message after which a process counts as stopped."""
WARN_AFTER = 60.0
"""Seconds without progress after which a process is named in the log, unless the time limit is shorter."""
_LAST_REPORT = 3
"""Intervals without a message after which a process is dead, once a connection is lost."""
_WATCHERS = 2
"""The first ranks watch; one of them may be the one that stops."""
_END = "end"
_LOST = "lost"


@dataclass(frozen=True)
class Report:
    """How far a process is.

    Attributes:
        micro_batches: Micro-batches that it has begun; all processes begin equally many.
        step: The update that it is working on.
        paused: It validates or saves, which may take long.
        host, pid: Where it runs.
        number: Number of the report.
    """

    micro_batches: int = 0
    step: int = 0
    paused: bool = False
    host: str = ""
    pid: int = 0
    number: int = 0


def suspects(reports: dict[int, Report], silent: dict[int, float], waiting: dict[int, float]) -> dict[int, float]:
    """The ranks that the others wait for, with the seconds since their last progress.

    Args:
        reports: The newest report of each rank.
        silent: Seconds since each rank's last report.
        waiting: Seconds since each rank last began a micro-batch.
    """
    furthest = max(report.micro_batches for report in reports.values())
    return {
        rank: waiting[rank]
        for rank, report in reports.items()
        if silent[rank] > SILENCE or (report.micro_batches < furthest and not report.paused)
    }


class Pulse:
    """A context in which a process reports how far it is, and the first ranks watch the reports.

    Args:
        world: This process among the others; alone it reports nothing.
        limit: Seconds after which a process that hangs ends the run; 0 = never.
    """

    def __init__(self, world: World, *, limit: float) -> None:
        self._world, self._limit = world, limit
        self._report = Report(host=socket.gethostname(), pid=os.getpid())
        self._reported, self._wake, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Pulse:
        if self._world.size > 1 and self._limit > 0 and "MASTER_ADDR" in os.environ:
            self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
            self._thread.start()
            self._reported.wait(INTERVAL)  # so that this process can be named by the others
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if self._thread is not None and is_lost_process(error):
                raise self._lost() from error
        finally:
            self._ended.set()
            self._wake.set()
            if self._thread is not None:
                self._thread.join()

    def beat(self, step: int) -> None:
        """A micro-batch of the update `step` begins."""
        is_first = self._report.micro_batches == 0
        self._set(micro_batches=self._report.micro_batches + 1, step=step)
        if is_first:
            self._wake.set()  # it is reported at once: a process may die within the first second

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A context in which this process may take its time."""
        self._set(paused=True)
        try:
            yield
        finally:
            self._set(paused=False)

    def _set(self, **changes: Any) -> None:
        self._report = Report(**{**asdict(self._report), **changes})

    def _run(self) -> None:
        try:
            store = open_store(self._world.attempt)
            watch = Watcher(self._world.size, self._limit) if self._world.rank < _WATCHERS else None
            while True:
                self._set(number=self._report.number + 1)
                store.set(_key(self._world.rank), json.dumps(asdict(self._report)))
                self._reported.set()
                sentence = watch.look(store) if watch is not None else None
                if sentence is not None and not store.check([_END]):
                    store.set(_END, sentence)
                if store.check([_END]):
                    _end(store.get(_END).decode())
                self._wake.wait(INTERVAL)
                self._wake.clear()
                if self._ended.is_set():
                    return
        except RuntimeError as error:  # the store is gone: torchrun is ending the run
            logger.debug("No more reports between processes: %s", error)

    def _lost(self) -> LostProcessError:
        """The error that names the processes that have died: they no longer report. One of the others says it."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others: no request to save
        try:
            store = open_store(self._world.attempt)
            before = _reports(store, self._world.size)
            time.sleep(_LAST_REPORT * INTERVAL)
            now = _reports(store, self._world.size)
            others = [rank for rank in range(self._world.size) if rank != self._world.rank]
            dead = [_death(rank, now.get(rank)) for rank in others if now.get(rank) == before.get(rank)]
            said = store.compare_set(_LOST, "", str(self._world.rank)).decode() != str(self._world.rank)
        except RuntimeError as error:
            logger.debug("No reports between processes: %s", error)
            return lost_process(self._world)
        return lost_process(self._world, "; ".join(dead), said=said)


def _death(rank: int, report: Report | None) -> str:
    if report is None:
        return f"rank {rank} died before its first report"
    return f"rank {rank} (host {report.host}, process {report.pid}) died in step {report.step}"


def lost_process(world: World, which: str = "", *, said: bool = False) -> LostProcessError:
    """The error about processes that have ended.

    Args:
        world: This process among the others.
        which: Names them; empty = they are not known.
        said: Another process says it.
    """
    found = which or f"process {world.rank} has lost another one"
    return LostProcessError(
        f"All {world.size} processes must keep running to the end, but {found}.",
        hint="the message of the process that ended first says why; resume with -train_from auto",
        said=said,
    )


class Watcher:
    """Reads the reports of all ranks.

    Args:
        size: Number of ranks.
        limit: Seconds after which a rank that hangs ends the run.
    """

    def __init__(self, size: int, limit: float) -> None:
        self._size, self._limit = size, limit
        self._warn_after = min(WARN_AFTER, limit / 2)
        self._reports: dict[int, Report] = {}
        self._reported: dict[int, float] = {}
        self._went_on: dict[int, float] = {}
        self._named: set[tuple[int, int]] = set()

    def look(self, store: Any) -> str | None:
        """The sentence with which the run must end; None = it continues. A suspect is named in the log first."""
        now = time.monotonic()
        for rank, report in _reports(store, self._size).items():
            self._read(rank, report, now)
        if len(self._reports) < self._size:
            return None
        silent = {rank: now - then for rank, then in self._reported.items()}
        waiting = {rank: now - then for rank, then in self._went_on.items()}
        for rank, seconds in suspects(self._reports, silent, waiting).items():
            report = self._reports[rank]
            what = f"Rank {rank} (host {report.host}, process {report.pid}) has not finished step {report.step}"
            if seconds > self._limit:
                _kill_stopped(report)
                return f"{what} for {seconds:.0f} s, so the run ends (collective_timeout)."
            if seconds > self._warn_after and (rank, report.step) not in self._named:
                self._named.add((rank, report.step))
                logger.warning("%s for %.0f s: the other processes wait for it.", what, seconds)
        return None

    def _read(self, rank: int, report: Report, now: float) -> None:
        before = self._reports.get(rank)
        self._reports[rank] = report
        if before is None or before.number != report.number:
            self._reported[rank] = now
        if before is None or before.micro_batches != report.micro_batches or before.paused != report.paused:
            self._went_on[rank] = now


def _key(rank: int) -> str:
    return f"rank/{rank}"


def _reports(store: Any, size: int) -> dict[int, Report]:
    """The newest report of each rank that has made one."""
    ranks = [rank for rank in range(size) if store.check([_key(rank)])]
    return {rank: Report(**json.loads(store.get(_key(rank)))) for rank in ranks}


def _kill_stopped(report: Report) -> None:
    """Kill a stopped process of this host, which would not notice that the run ends."""
    if report.host == socket.gethostname() and report.pid != os.getpid():
        try:
            os.kill(report.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("Process %d has ended already.", report.pid)


def _end(sentence: str) -> None:
    """End this process at once: its main thread waits for a process that will not answer."""
    logger.error("%s", sentence)
    time.sleep(2 * INTERVAL)  # the others must see the sentence before the first process ends
    os._exit(1)
