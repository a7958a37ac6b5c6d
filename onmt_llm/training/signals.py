"""What is asked of a run from outside: a checkpoint, or a checkpoint and an end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from onmt_llm.log import logger
from onmt_llm.training.dist import World

# On a network file system a look costs milliseconds.
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Asked:
    """What is asked of a run after an update; on all ranks alike.

    Attributes:
        save: Write a checkpoint.
        stop: Write one and end: "interrupted" (by a signal) or "out of time"; "" = go on.
    """

    save: bool = False
    stop: str = ""


class Requests:
    """While inside, SIGINT and SIGTERM ask for a stop after the present update, SIGUSR1 for a checkpoint.

    A second SIGINT or SIGTERM stops at once.

    Args:
        save_file: A file that asks for a checkpoint when it appears; it is removed then.
        deadline: Time of `time.monotonic` at which to stop.
        checks: Called after every update; what they raise ends the run.
    """

    def __init__(
        self,
        *,
        save_file: Path | None = None,
        deadline: float | None = None,
        checks: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.signal: signal.Signals | None = None
        self._save_file = save_file
        self._deadline = deadline
        self._checks = checks
        self._save = False
        self._next_look = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Requests:
        # Only the main thread may set handlers; elsewhere (a notebook's worker) signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_stop)
            if hasattr(signal, "SIGUSR1"):
                self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._on_save)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def poll(self, world: World) -> Asked:
        """What was asked since the last call, of any rank."""
        for check in self._checks:
            check()
        if world.is_main:
            self._look()
        late = self._deadline is not None and time.monotonic() >= self._deadline
        save, interrupted, late = world.any_each([self._save, self.signal is not None, late])
        self._save = False
        return Asked(save, "interrupted" if interrupted else "out of time" if late else "")

    @property
    def name(self) -> str:
        """Who asked for the stop."""
        return "another process" if self.signal is None else self.signal.name

    def _look(self) -> None:
        now = time.monotonic()
        if self._save_file is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        if self._save_file.exists():
            self._save_file.unlink(missing_ok=True)
            logger.info("%s is there: a checkpoint is written.", self._save_file)
            self._save = True

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        logger.warning("%s: the run saves and stops after this update; once more stops at once.", self.name)
