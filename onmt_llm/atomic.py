"""A directory that is complete under its name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from onmt_llm.errors import CheckpointError
from onmt_llm.outputs import flush, is_written_in_place, write_failed

MODEL_FILES = ("config.yaml", "config.json", "adapter_config.json")
"""What marks a directory as a model's: only such a one is ever replaced."""


class AtomicDirectory:
    """Collects files in a hidden directory beside the output; leaving the context flushes them and renames it.

    An error inside leaves nothing behind, and what stood at `path` untouched. A symlink keeps pointing: what it points
    to is replaced.

    Args:
        path: The directory to create, named exactly so.
        overwrite: Replace a model that stands there.

    Attributes:
        path: The output.
        directory: Where the files are until then.

    Raises:
        CheckpointError: `path` exists, and is no model or `overwrite` is False.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._target = Path(os.path.realpath(path))
        self._overwrite = overwrite
        recover(self._target.parent, re.escape(self._target.name))
        check_output(self.path, overwrite=overwrite)
        self.directory = _beside(self._target, "tmp")

    def __enter__(self) -> AtomicDirectory:
        shutil.rmtree(self.directory, ignore_errors=True)
        with self.translated_errors():
            self.directory.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self.translated_errors():
                    self._publish()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def add_file(self, source: str | Path, name: str) -> None:
        """Copy a file to `name`."""
        with self.translated_errors():
            shutil.copyfile(source, self.directory / name)

    def add_text(self, name: str, text: str) -> None:
        """Write UTF-8 text to `name`."""
        self.add_bytes(name, text.encode("utf-8"))

    def add_bytes(self, name: str, content: bytes) -> None:
        with self.translated_errors():
            (self.directory / name).write_bytes(content)

    @contextlib.contextmanager
    def translated_errors(self) -> Iterator[None]:
        """A full disk, a forbidden place or a file that has gone, in a sentence; and nothing left behind."""
        try:
            yield
        except OSError as error:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise write_failed(self.path, error, unfinished=self.directory) from error

    def _publish(self) -> None:
        """Flush everything, then move the older directory aside, rename, and only then remove the older one."""
        for file in self.directory.rglob("*"):
            flush(file)
        flush(self.directory)
        check_output(self.path, overwrite=self._overwrite)
        aside = _beside(self._target, "old")
        replaced = self._target.exists() and any(self._target.iterdir())
        if replaced:
            self._target.rename(aside)
        try:
            self.directory.rename(self._target)
        except OSError:
            if replaced:
                aside.rename(self._target)
            raise
        flush(self.directory.parent)
        if replaced:
            shutil.rmtree(aside)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is done.

    Raises:
        CheckpointError: Something stands at `path`; with `overwrite`, something that is not a checkpoint or a release.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(
            f"The output {path} exists already.", hint="choose another name, or replace it with -force"
        )
    if not is_replaceable(path):
        raise CheckpointError(
            f"The output {path} exists and is no checkpoint, so it is not replaced.", hint="remove it yourself"
        )


def is_replaceable(path: Path) -> bool:
    """Whether what stands at `path` may be replaced by a model: another one, or an empty directory."""
    return path.is_dir() and (any((path / name).is_file() for name in MODEL_FILES) or not any(path.iterdir()))


def check_output_file(path: Path, *, overwrite: bool) -> None:
    """Refuse an output file that exists, before any work is done.

    Raises:
        CheckpointError: A directory stands at `path`, or a file and `overwrite` is False.
    """
    if path.is_dir():
        raise CheckpointError(f"The output must be a file, but {path} is a directory.")
    if path.exists() and not overwrite and not is_written_in_place(path):
        raise CheckpointError(
            f"The output {path} exists already.", hint="choose another name, or replace it with -force"
        )


def check_space(path: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: What is to be written.
        needed: Bytes that it will take.

    Raises:
        CheckpointError: Less is free where `path` goes.
    """
    place = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    if place is None:
        return
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{path} needs {needed:,} bytes on the disk, but {free:,} are free in {place}.", hint="make room"
        )


def remove_directory(path: Path) -> None:
    """Remove a directory so that no half of it is ever seen under its name; of a symlink, the link alone."""
    if path.is_symlink():
        path.unlink()
        return
    trash = _beside(path.absolute(), "trash")
    path.rename(trash)
    shutil.rmtree(trash)


def recover(folder: Path, names: str, *, alone: bool = False) -> None:
    """Clean up after processes that were killed while they wrote in `folder`.

    What they had begun, or were removing, is removed. What one had moved aside but not yet replaced is put back.

    Args:
        folder: Where; may be missing.
        names: Pattern of the outputs' names.
        alone: The caller is the only one to write them; else processes that are running, or on other machines, are
            left in peace.
    """
    pattern = re.compile(rf"\.({names})\.(tmp|old|trash)-(.+)-(\d+)")
    for leftover in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = pattern.fullmatch(leftover.name)
        if match is None or not (alone or (match[3] == socket.gethostname() and not _is_running(int(match[4])))):
            continue
        path = folder / match[1]
        if match[2] == "old" and not path.exists():
            leftover.rename(path)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _beside(place: Path, kind: str) -> Path:
    """A hidden name beside an output that no other process uses."""
    return place.with_name(f".{place.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
