"""Progress of a long job: a bar if stderr is a terminal, otherwise a log line every 30 seconds."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from onmt_llm.log import logger

LINE_SECONDS = 30.0


class ProgressBar:
    """Shows how much is done, with rate and time left.

    Args:
        what: What is done, in a word or two.
        total: How much there is to do; None = unknown.
        unit: What is counted; an SI prefix may stand before a one-letter unit.
        describe: The log line, after `what`; given the seconds so far (above 0).
        is_shown: False = nothing is shown.
    """

    def __init__(
        self, what: str, total: int | None, *, unit: str, describe: Callable[[float], str], is_shown: bool = True
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._describe, self._is_shown = describe, is_shown
        self._bar: Any = None
        self._cleanup = ExitStack()

    def __enter__(self) -> ProgressBar:
        if self._is_shown and sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._cleanup.enter_context(logging_redirect_tqdm([logger]))
            units = {"unit": self._unit, "unit_scale": len(self._unit) == 1, "dynamic_ncols": True}
            self._bar = self._cleanup.enter_context(tqdm(desc=self._what, total=self._total, leave=False, **units))
        self._began = self._said = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()
        if kind is None and self._said > self._began:  # the last of several lines
            self._say()

    def add(self, amount: int, note: str = "") -> None:
        """This much more is done; the note stands at the end of the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif self._is_shown and time.monotonic() - self._said > LINE_SECONDS:
            self._say()

    def skip(self, amount: int) -> None:
        """This much was done before; it does not count in the rate."""
        if self._bar is not None:
            self._bar.initial = self._bar.n = amount
            self._bar.refresh()

    def seconds(self) -> float:
        """Time since the beginning."""
        return max(time.monotonic() - self._began, 1e-9)

    def _say(self) -> None:
        self._said = time.monotonic()
        logger.info("%s: %s", self._what, self._describe(self.seconds()))
