"""The logger of the package. Rank 0 logs everything, the other ranks only warnings."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("onmt_llm")
_said: set[str] = set()

OPEN, CLOSE = "⟦", "⟧"
"""Around a highlighted part of a message."""
_COLOURS = str.maketrans({OPEN: "\x1b[1;32m", CLOSE: "\x1b[0m"})


class Highlighter(logging.Formatter):
    """Shows the highlighted parts of a message in colour."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).translate(_COLOURS)


def setup_logging(*, log_file: str | None = None) -> None:
    """Send the log to stderr (and to `log_file`). The commands call this, the library never does."""
    rank = int(os.environ.get("RANK", "0"))
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        kind = Highlighter if colours and handler is handlers[0] else logging.Formatter
        handler.setFormatter(kind("[%(asctime)s %(levelname)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    logger.propagate = False


def log_once(message: str, *, level: int = logging.INFO) -> None:
    """Log a message only the first time in this process, e.g. a note about a fallback."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)
