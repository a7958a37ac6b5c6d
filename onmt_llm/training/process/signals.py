"""Requests to a run from outside: save a checkpoint or validate now, or save a checkpoint and stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from onmt_llm.log import logger
from onmt_llm.training.process.dist import World
from onmt_llm.training.result import RunStatus

# On a network file system a check takes milliseconds.
_CHECK_INTERVAL_S = 1.0
# A scheduler may send SIGTERM to all processes of a job, and torchrun, which receives it too, passes it on.
_SAME_REQUEST_S = 5.0


@dataclass(frozen=True)
class SignalRequest:
    """What a run should do after an update; the same on all ranks.

    Attributes:
        save: Save a checkpoint.
        validate: Validate.
        stop: Save a checkpoint and end with this status: interrupted or out of time; None = continue.
    """

    save: bool = False
    validate: bool = False
    stop: RunStatus | None = None


class _Clock:
    """Rings every so many seconds.

    Args:
        every: Seconds; None = never.
    """

    def __init__(self, every: float | None) -> None:
        self._every = every
        self._next = time.monotonic() + (every or 0)

    def rings(self) -> bool:
        """Whether the time has passed since it rang before."""
        now = time.monotonic()
        if self._every is None or now < self._next:
            return False
        self._next = now + self._every
        return True


class SignalHandler:
    """A context in which SIGINT and SIGTERM request a stop after the current update, and SIGUSR1 a checkpoint.

    A second SIGINT or SIGTERM stops at once, but a SIGTERM that follows within seconds belongs to the first.

    Args:
        save_file: A file that requests a checkpoint when it appears; it is then removed.
        deadline: Value of `time.monotonic` at which the run stops.
        save_every: Seconds between two checkpoints, by the clock of rank 0; None = no such request.
        validate_every: Seconds between two validations, likewise.
        checks: Functions to call after every update; an error that they raise ends the run.
    """

    def __init__(
        self,
        *,
        save_file: Path | None = None,
        deadline: float | None = None,
        save_every: float | None = None,
        validate_every: float | None = None,
        checks: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.signal: signal.Signals | None = None
        self._save_file = save_file
        self._deadline = deadline
        self._save_clock, self._validate_clock = _Clock(save_every), _Clock(validate_every)
        self._checks = checks
        self._save = False
        self._next_check = 0.0
        self._first = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> SignalHandler:
        # Only the main thread may set handlers; in another (a notebook's worker) signals keep their handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_stop)
            if hasattr(signal, "SIGUSR1"):
                self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._on_save)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def poll(self, world: World) -> SignalRequest:
        """The requests to any rank since the last call."""
        for check in self._checks:
            check()
        validate = False
        if world.is_main:
            self._check_save_file()
            self._save |= self._save_clock.rings()
            validate = self._validate_clock.rings()
        late = self._deadline is not None and time.monotonic() >= self._deadline
        save, validate, interrupted, late = world.any_each([self._save, validate, self.signal is not None, late])
        self._save = False
        stop = RunStatus.INTERRUPTED if interrupted else RunStatus.OUT_OF_TIME if late else None
        return SignalRequest(save, validate, stop)

    @property
    def name(self) -> str:
        """What requested the stop."""
        return "another process" if self.signal is None else self.signal.name

    def _check_save_file(self) -> None:
        now = time.monotonic()
        if self._save_file is None or now < self._next_check:
            return
        self._next_check = now + _CHECK_INTERVAL_S
        if self._save_file.exists():
            self._save_file.unlink(missing_ok=True)
            logger.info("%s exists: saving a checkpoint.", self._save_file)
            self._save = True

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is not None:
            if number == signal.SIGTERM and now < self._first + _SAME_REQUEST_S:
                return
            raise KeyboardInterrupt
        self._first = now
        self.signal = signal.Signals(number)
        logger.warning("%s: the run saves and stops after this update; a second signal stops it at once.", self.name)
