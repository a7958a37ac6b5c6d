"""Record index: offsets and number of the records of a plain file, found in one pass and cached for the next run.

An index is a file of 64-bit byte offsets (8 bytes per line). It is read from disk, a few bytes per record, so memory
use does not grow with the corpus. Its name and header identify the indexed file by path, size, modification time and
a sample of its content; if the file changes, a new index is built. The index ends with a checksum, which is verified
when it is opened: an index that is damaged, truncated or of another version is rebuilt.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import blake2b
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path

import numpy as np

from onmt_llm.data.readers.files import bytes_passed, is_compressed, open_bytes, skip_mark
from onmt_llm.data.readers.index_file import Index, Unusable, new_index
from onmt_llm.errors import DataError
from onmt_llm.log import logger

_BLOCK = 1 << 22
_SAMPLE = 1 << 16
_BATCH = 1 << 16
_LARGE = 1 << 30
_PATIENCE = 10.0
"""Seconds between two progress messages."""


class LineIndex:
    """Start and end offsets of the lines of a plain file.

    Attributes:
        count: Number of lines.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.count = index.count - 1

    def start(self, number: int) -> int:
        """Offset of the first byte of a line (counted from 0); after the last line, the end of the file."""
        return self._index.at(number)[0]

    def span(self, number: int) -> tuple[int, int]:
        """Offsets of the first byte of a line (counted from 0) and of the byte after its line break."""
        start, end = self._index.at(number, 2)
        return start, end

    def close(self) -> None:
        self._index.close()


class IndexCache:
    """Cache of record counts and indexes in a folder, or for the lifetime of the process without one.

    Args:
        folder: Created on the first write.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def lines(self, path: Path) -> int:
        """Number of lines of a file; the last line counts even without a line break.

        Raises:
            DataError: A compressed file is damaged.
        """
        return self.number(path, "lines", lambda: count_lines(path))

    def number(self, path: Path, what: str, find: Callable[[], int]) -> int:
        """A number that takes a full pass over a file; computed once and cached.

        Args:
            path: The file.
            what: What is counted: part of the cache file's name.
            find: Makes the pass.
        """
        kept = self._kept(path, f"{what}.count", 1, lambda: [_words([find()])])
        (number,) = kept.at(0)
        kept.close()
        return number

    def line_index(self, path: Path) -> LineIndex:
        """The line index of a plain file."""
        return LineIndex(self.index(path, "lines", 1, lambda: line_starts(path)))

    def index(self, path: Path, what: str, width: int, find: Callable[[], Iterable[bytes]]) -> Index:
        """An index that takes a full pass over a file; built once and cached.

        Args:
            path: The file.
            what: What is indexed: part of the cache file's name.
            width: Numbers per row.
            find: Makes the pass and yields the numbers as little-endian 64-bit words.
        """
        return self._kept(path, f"{what}.index", width, find)

    def _kept(self, path: Path, kind: str, width: int, find: Callable[[], Iterable[bytes]]) -> Index:
        """Open a cached count or index; build it if it is missing or damaged."""
        name, state = _identity(path)
        identity = blake2b(f"{name} {state} {kind}".encode(), digest_size=16).digest()
        folder = self._writable()
        target = folder / f"{name}-{state}.{kind}"
        if target.is_file():
            try:
                return Index(target, width, identity)
            except Unusable as problem:
                logger.warning("The index %s is damaged (it %s): rebuilding it.", target, problem)
        _announce(path, kind)
        try:
            with new_index(target, find(), width, identity):
                if _identity(path) != (name, state):
                    raise DataError(
                        f"A file must not change while it is read, but {path} changed while it was indexed."
                    )
        except OSError as error:
            raise DataError(
                f"Writing {target} failed: {error.strerror or error}.", hint="index_cache names another folder"
            ) from error
        for old in folder.glob(f"{name}-*.{kind}"):
            if old != target:
                with suppress(OSError):
                    old.unlink()
        return Index(target, width, identity)

    def _writable(self) -> Path:
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                if os.access(self._folder, os.W_OK):
                    return self._folder
            except OSError:
                pass
            logger.warning("Corpus indexes are rebuilt in every run, since %s is not writable.", self._folder)
            self._folder = None
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="onmt_llm_index_")
        return Path(self._temporary.name)


def count_lines(path: Path) -> int:
    """Number of lines of a file, at disk speed; the last line counts even without a line break."""
    lines, last, tell = 0, b"\n", _Progress(path)
    with open_bytes(path) as file:
        skip_mark(file)
        while block := file.read(_BLOCK):
            lines += block.count(b"\n")
            last = block[-1:]
            tell(file)
    return lines + (last != b"\n")


def line_starts(path: Path) -> Iterable[bytes]:
    """Offset of every line of a plain file and the end of the last one, as little-endian 64-bit words."""
    tell = _Progress(path)
    with open_bytes(path) as file:
        offset = last = skip_mark(file)
        yield _words([offset])
        while block := file.read(_BLOCK):
            starts = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            starts += offset + 1
            offset += len(block)
            if len(starts):
                last = int(starts[-1])
                yield starts.astype("<u8").tobytes()
            tell(file)
    if last != offset:
        yield _words([offset])


class _Progress:
    """Logs the progress of a pass over a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = max(path.stat().st_size, 1)
        self._next = time.monotonic() + _PATIENCE

    def __call__(self, file: BufferedReader) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PATIENCE
            logger.info("%s: %d%% scanned.", self._path, 100 * bytes_passed(file) // self._size)


def packed(rows: Iterable[Iterable[int]]) -> Iterable[bytes]:
    """Rows of numbers as little-endian 64-bit words."""
    numbers = chain.from_iterable(rows)
    while block := list(islice(numbers, _BATCH)):
        yield _words(block)


def _words(numbers: list[int]) -> bytes:
    return np.array(numbers, dtype="<u8").tobytes()


def _announce(path: Path, kind: str) -> None:
    size = path.stat().st_size
    if size > (_LARGE // 8 if is_compressed(path) else _LARGE):
        logger.info("Scanning %s (%.1f GB) for its %s.", path, size / 1e9, kind.split(".")[0])


def state_of(path: Path) -> str:
    """A hash of a file's path and state, which changes if the file does."""
    return "-".join(_identity(path))


def _identity(path: Path) -> tuple[str, str]:
    """A hash of a file's path, and one of its state: size, modification time and a sample of its content."""
    info = path.stat()
    state = blake2b(f"{info.st_size} {info.st_mtime_ns} ".encode(), digest_size=8)
    with path.open("rb", buffering=0) as file:
        for place in (0, info.st_size // 2, max(0, info.st_size - _SAMPLE)):
            file.seek(place)
            state.update(file.read(_SAMPLE))
    return blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest(), state.hexdigest()
