"""How far a conversion is: a bar if stderr is a terminal, otherwise a log line every half a minute."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from onmt_llm.log import logger

LINE_SECONDS = 30.0


class TensorProgress:
    """Counts the bytes and tensors that are done, and shows rate and time left.

    Args:
        what: What is done, in a word or two.
        sizes: Bytes of each tensor.
    """

    def __init__(self, what: str, sizes: Collection[int]) -> None:
        self._what, self._tensors, self._total = what, len(sizes), sum(sizes)
        self._done = self._count = 0
        self._bar: Any = None
        self._cleanup = ExitStack()

    def __enter__(self) -> TensorProgress:
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._cleanup.enter_context(logging_redirect_tqdm([logger]))
            units = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
            self._bar = self._cleanup.enter_context(tqdm(desc=self._what, total=self._total, leave=False, **units))
        self._began = self._said = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()
        if kind is None and self._said > self._began:  # the last of several lines
            self._say()

    def add(self, *sizes: int) -> None:
        """Tensors of these sizes in bytes are done."""
        self._done, self._count = self._done + sum(sizes), self._count + len(sizes)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._count}/{self._tensors} tensors", refresh=False)
            self._bar.update(sum(sizes))
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        logger.info(
            "%s: %d of %d tensors, %.0f of %.0f MB, %.0f MB/s, %.0f s left",
            *(self._what, self._count, self._tensors, self._done / 1e6, self._total / 1e6),
            *(self._done / seconds / 1e6, max(0, self._total - self._done) * seconds / max(1, self._done)),
        )
