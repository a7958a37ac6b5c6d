"""`BackgroundTask`: one task at a time in a thread, while training continues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from onmt_llm.log import log_once, logger
from onmt_llm.nn.device import available_memory

_LOGGED_WAIT_S = 1.0


class BackgroundTask:
    """Runs one task at a time; an error that it raises is raised again by the next call here.

    The thread does not keep the process alive: a run that stops at once leaves the task unfinished.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start `work` when the previous task is done."""
        began = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - began
        if waited > _LOGGED_WAIT_S:
            logger.info("Training waited %.1f s for the previous checkpoint to be written.", waited)
        self._thread = threading.Thread(target=self._run, args=(work,), name="onmt_llm-save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the current task."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of the current or previous task, if any; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised again in the loop
            self._error = error


def copy_fits(size: int) -> bool:
    """Whether a copy of this many bytes fits into memory."""
    available = available_memory()
    if available is None or size < 0.8 * available:
        return True
    log_once(
        f"A copy of a checkpoint takes {size:,} bytes, too much of the {available:,} available: training waits while "
        "a checkpoint is written."
    )
    return False
