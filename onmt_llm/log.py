"""One logger for the whole program. Rank 0 speaks; the other ranks only warn."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("onmt_llm")
_said: set[str] = set()


def setup_logging(*, level: int = logging.INFO, log_file: str | None = None) -> None:
    """Send the log to stderr (and `log_file`), once for the process; called by the commands, never by the library."""
    rank = int(os.environ.get("RANK", "0"))
    logger.setLevel(level if rank == 0 else logging.WARNING)
    formatter = logging.Formatter("[%(asctime)s %(levelname)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.propagate = False


def log_once(message: str, *, level: int = logging.INFO) -> None:
    """Log a sentence the first time it is said in this process: for fallbacks taken and notes."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)
