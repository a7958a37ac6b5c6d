"""Every error a user can cause, and the exit code that the command line gives for it.

A message is one sentence: what must hold, what it is, where. The hint says what to do about it.
"""

from __future__ import annotations

import re


class OnmtLlmError(Exception):
    """Base of all errors with a message written for the user.

    Args:
        message: One sentence: what must hold, what it is, where.
        hint: What to do about it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Where a sentence of ours ends with one of a library, that often brings its own full stop.
        message = re.sub(r"(?<!\.)\.(\)?)\.$", r"\1.", message)
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(OnmtLlmError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class DataError(OnmtLlmError):
    """A corpus, vocabulary or tokeniser file is wrong or missing."""

    exit_code = 3


class CheckpointError(OnmtLlmError):
    """A checkpoint, adapter or foreign weight file is wrong, incomplete or missing, or an output cannot be written."""

    exit_code = 4


class UnsupportedError(OnmtLlmError):
    """A valid request that this machine, package set or file format cannot serve."""

    exit_code = 2
