"""Outputs that grow chunk by chunk.

A file grows as `OUTPUT.partial` and appears under its name when it is complete. `OUTPUT.partial.json` beside it says
how much of it is certain and where it comes from, so that the same command can be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from onmt_llm.atomic import flush, is_written_in_place, write_failed
from onmt_llm.checksums import Hash, fast_hash
from onmt_llm.cli.outputs import STANDARD, Output
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.locks import lock_file
from onmt_llm.log import logger
from onmt_llm.output_checks import place_problem

START_AGAIN = "-resume false starts again from the first line"


class GrowingOutput(Protocol):
    """An output to which chunks are added."""

    state: Mapping[str, Any]
    """What was given to `add` with the last chunk, in this process or in an earlier one; empty = there is none."""

    def add(self, text: str, state: Mapping[str, Any]) -> None:
        """Write a chunk, and what is needed to resume after it (plain data)."""
        ...

    def __enter__(self) -> GrowingOutput: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_output(path: str, origin: Mapping[str, Any], *, resume: bool) -> GrowingOutput:
    """Open an output: a file, which becomes complete on leaving the context, or a stream.

    Args:
        path: "-" = standard output.
        origin: What the output is made from (plain data), by the names of options.
        resume: Resume a file that was interrupted.
    """
    return StreamOutput(path) if _is_stream(path) else PartialFile(path, origin, resume=resume)


def partial_files(path: str) -> list[Path]:
    """The unfinished twin of an output, its record, and what becomes the next record; empty for a stream."""
    target = os.path.realpath(path)
    endings = (".partial", ".partial.json", ".partial.json.new")
    return [] if _is_stream(path) else [Path(target + ending) for ending in endings]


def with_partial_files(outputs: list[Output]) -> Iterator[Output]:
    """Outputs with the files that they are until they are complete."""
    for output in outputs:
        yield output
        if place_problem(output.path) is None:
            yield from (Output(output.name, str(path)) for path in partial_files(output.path))


def _is_stream(path: str) -> bool:
    return path == STANDARD or is_written_in_place(Path(path))


class StreamOutput:
    """Standard output, a device or a pipe: what is written is gone.

    Args:
        path: "-" = standard output.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.state: Mapping[str, Any] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> StreamOutput:
        with self._errors():
            self._file = (
                sys.stdout
                if self._path == STANDARD
                else self._cleanup.enter_context(open(self._path, "w", encoding="utf-8", newline="\n"))
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._errors():
            self._cleanup.close()

    def add(self, text: str, state: Mapping[str, Any]) -> None:
        with self._errors():
            self._file.write(text)
            self._file.flush()
        self.state = state

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._path == STANDARD:
                raise
            raise write_failed(Path(self._path), error) from error


class PartialFile:
    """A file that is complete under its name, or unfinished as `.partial`.

    A symlink is kept: the file that it points to is replaced.

    Args:
        path: The output.
        origin: See `open_output`.
        resume: Resume what an interrupted process has left.

    Raises:
        CheckpointError: Another process writes this output, or it cannot be written.
        ConfigError: What was left is of another origin.
    """

    def __init__(self, path: str, origin: Mapping[str, Any], *, resume: bool) -> None:
        self._path, self._target = Path(path), Path(os.path.realpath(path))
        self._origin = json.loads(json.dumps(origin))
        self.partial, self._record, self._new_record = partial_files(path)
        self.state: Mapping[str, Any] = {}
        self._size, self._digest = 0, fast_hash()
        self._resume = resume
        self._file: BinaryIO | None = None
        self._lock: int | None = None

    def __enter__(self) -> PartialFile:
        with self._errors():
            if self._target.exists() and not os.access(self._target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._target))
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            held = CheckpointError(
                f"Another process is writing {self._path}.", hint="wait for it, or give another -output"
            )
            self._lock = lock_file(self.partial, held)
            try:
                self._open()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._errors():
                if kind is None:
                    self._publish()
                elif not self._size:
                    self._remove()
                else:
                    logger.info("What is done is kept in %s: the same command resumes it.", self.partial)
        finally:
            self._close()

    def add(self, text: str, state: Mapping[str, Any]) -> None:
        assert self._file is not None
        content = text.encode("utf-8")
        with self._errors():
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._digest.update(content)
            self._size += len(content)
            self._write_record(state)

    def _open(self) -> None:
        """Open the file after what is certain."""
        if self._size_on_disk():
            self._read_record()
        if not self._size:
            self._write_record({})
        self._file = open(self.partial, "r+b" if self.partial.exists() else "w+b")  # noqa: SIM115
        self._file.truncate(self._size)  # a chunk of which only a part was written
        self._file.seek(self._size)

    def _size_on_disk(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _read_record(self) -> None:
        """Take over what an earlier process has left, as far as it is certain."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            size, digest, state, origin = (record[name] for name in ("bytes", "xxh3", "state", "origin"))
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self.partial} must be what an interrupted command has left, but {self._record} does not say so.",
                hint="rename or remove it",
            ) from None
        if not self._resume or not size:
            return
        for name in sorted({*origin, *self._origin}):
            if origin.get(name) != self._origin.get(name):
                raise ConfigError(
                    f"The answers in {self.partial} must be of the same command, but '{name}' was {origin.get(name)!r} "
                    f"for them and is {self._origin.get(name)!r} now.",
                    hint=START_AGAIN,
                )
        self._digest = _hash_of(self.partial, size)
        if self._digest.hexdigest() != digest:
            raise CheckpointError(
                f"{self.partial} must be as an interrupted command has left it, but has changed since.",
                hint=START_AGAIN,
            )
        self.state, self._size = state, size

    def _write_record(self, state: Mapping[str, Any]) -> None:
        content = {"bytes": self._size, "xxh3": self._digest.hexdigest(), "state": state, "origin": self._origin}
        # under a fixed name, of which a kill leaves one file at most; the lock keeps other processes away
        self._new_record.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        flush(self._new_record)
        self._new_record.replace(self._record)
        flush(self._record.parent)
        self.state = state

    def _publish(self) -> None:
        if self._target.exists():
            shutil.copymode(self._target, self.partial)
        flush(self.partial)
        self.partial.replace(self._target)
        flush(self._target.parent)
        self._remove_records()

    def _remove(self) -> None:
        self.partial.unlink(missing_ok=True)
        self._remove_records()

    def _remove_records(self) -> None:
        self._new_record.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            os.close(self._lock)
        self._file = self._lock = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn an error of the file system into a sentence for the user."""
        try:
            yield
        except OSError as error:
            raise write_failed(self._path, error, unfinished=self.partial) from error


def _hash_of(path: Path, size: int) -> Hash:
    """XXH3 of the first bytes of a file, to which more can be added."""
    digest = fast_hash()
    with open(path, "rb") as file:
        while size and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest
