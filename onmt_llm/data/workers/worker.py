"""The process of a data worker: `python -m onmt_llm.data.workers.worker`, started by `pool.WorkerProcess` only.

It reads a `Job` and then one task at a time from standard input, and answers each task with a `WorkerReply`. It ends
with its input, so no worker outlives a trainer that was killed. It does not import torch.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from onmt_llm.data.workers.pickling import TOKENIZERS, Restricted
from onmt_llm.data.workers.pool import Job, WorkerReply
from onmt_llm.errors import DataError, OnmtLlmError
from onmt_llm.log import logger


class _Messages(logging.Handler):
    """Collects log messages for the main process."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._held.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        held, self._held = self._held, []
        return held


def main() -> None:
    """Answer tasks until there are no more."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer decides when its workers end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    tasks, replies = sys.stdin.buffer, _private_stdout()
    packages = (*TOKENIZERS, *sys.argv[1:])
    messages = _Messages()
    logger.handlers[:] = [messages]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    job: Job[Any, Any] | None = None
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            item = Restricted(tasks, packages).load()
        except EOFError:
            return
        except pickle.UnpicklingError as error:
            sys.exit(f"A data worker stops: {error}")
        if job is None:
            job = item
            continue
        try:
            work = work or job.open()
            reply = WorkerReply(work(item), messages.take())
        except Exception as error:
            reply = WorkerReply(_portable(error, job), messages.take())
        try:
            pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
            replies.flush()
        except BrokenPipeError:
            os._exit(0)


def _portable(error: Exception, job: Job[Any, Any]) -> Exception:
    """An error that can be sent: ours unchanged, with its hint; others as a `DataError` with their traceback."""
    if isinstance(error, OnmtLlmError):
        return error
    return DataError(
        f"A data worker must complete every task, but failed with {type(error).__name__}: {error}.",
        hint=f"{job.without_processes} fails in the main process itself; here it was\n{traceback.format_exc()}",
    )


def _private_stdout() -> BinaryIO:
    """Reserve standard output for replies; output of libraries goes to standard error."""
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    main()
