"""Random-access reads of byte ranges of a plain file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from onmt_llm.data.readers.files import open_raw
from onmt_llm.errors import DataError


class Spans:
    """Byte ranges of a plain file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`.

        Raises:
            DataError: The file has shrunk.
        """
        raw = os.pread(self._fileno(), end - start, start)
        if len(raw) < end - start:
            raise DataError(f"A file must not shrink while it is read, but {self._path} has.")
        return raw

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Ask the system to prefetch ranges that will be read next."""
        if hasattr(os, "posix_fadvise"):
            file = self._fileno()
            for start, end in spans:
                os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _fileno(self) -> int:
        if self._file is None:
            self._file = open_raw(self._path)
        return self._file.fileno()
