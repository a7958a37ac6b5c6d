"""Locks of files between processes; the operating system releases them when a process ends for any reason."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from onmt_llm.errors import OnmtLlmError
from onmt_llm.log import logger


def lock_file(file: Path, held: OnmtLlmError) -> int | None:
    """Create a file if it is missing, and lock it.

    Args:
        file: The file.
        held: Raised if another process holds the lock.

    Returns:
        A descriptor that holds the lock; None if the operating system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise held from None
        except OSError:
            os.close(descriptor)
            logger.info("The file system of %s has no locks: make sure that only one run writes there.", file.parent)
            return None
        # The previous holder may have removed or renamed the file between the two calls; then this locks nothing.
        if is_file_of(file, descriptor):
            return descriptor
        os.close(descriptor)


def is_file_of(file: Path, descriptor: int) -> bool:
    """Whether an open file is still the one with that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    return False
