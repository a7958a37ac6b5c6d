"""One piece of work at a time, in a thread beside the training loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from onmt_llm.log import logger

_WORTH_TELLING_S = 1.0


class BackgroundTask:
    """Runs one piece of work at a time; what it raises is raised again by the next call here.

    The thread does not keep the process alive: a run that is told to stop at once leaves the work undone.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin with `work`, once the work before it is done."""
        began = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - began
        if waited > _WORTH_TELLING_S:
            logger.info("Training waited %.1f s for the checkpoint before to be written.", waited)
        self._thread = threading.Thread(target=self._run, args=(work,), name="onmt_llm-save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the work in hand."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what the work in hand, or that before it, has failed with; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # handed over to the loop, which raises it
            self._error = error
