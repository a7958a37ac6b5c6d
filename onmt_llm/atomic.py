"""Atomic writes: a file or a directory is complete under its name, or not there at all.

Everything is written beside the output under a hidden name, flushed to the disk and then renamed. What exists is only
replaced on request, and a directory only if it is a model.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from onmt_llm.errors import CheckpointError

MODEL_FILES = ("config.yaml", "config.json", "adapter_config.json")
"""Files that mark a directory as a model; no other directory is ever replaced."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk, or of a quota, without free space."""
TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors of a process, or of a system, that has too many open files: they say nothing about the file to be opened."""


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; when the context ends without an error, that file replaces `path`.

    A symlink is kept: the file that it points to is replaced. A device, a pipe, or the file to which standard output
    goes is written to directly, and never replaced.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path, temporary = Path(path), None
    try:
        if is_written_in_place(path):
            yield path
            return
        target = Path(os.path.realpath(path))
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            yield temporary
            if target.exists():
                shutil.copymode(target, temporary)
    except OSError as error:
        raise write_failed(path, error, unfinished=temporary) from error


def is_written_in_place(path: Path) -> bool:
    """Whether `path` must not be replaced: it is a device or a pipe, or the file to which standard output goes."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(there.st_mode) and not stat.S_ISDIR(there.st_mode):
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.path.samestat(there, os.fstat(sys.stdout.fileno()))
    return False


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """The bare form of `atomic_file`, for callers that handle the errors of the file system themselves.

    Raises:
        OSError: The file cannot be written.
    """
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.stem[:40]}.tmp-{unique}{target.suffix[:20]}")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(target)
        flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with the line endings of `text`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


class AtomicDirectory:
    """Collects files in a hidden directory beside the output; leaving the context flushes them and renames it.

    After an error inside the context nothing is left behind, and whatever exists at `path` is untouched. A symlink is
    kept: its target is replaced.

    Args:
        path: The directory to create.
        overwrite: Replace a model that exists at `path`.

    Attributes:
        path: The output.
        directory: The hidden directory.

    Raises:
        CheckpointError: `path` exists, and either `overwrite` is False or it is not a model.
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
        """Turn an error of the file system into a sentence for the user, and remove the hidden directory. A sentence of
        a function that wrote a file in there, and names that, becomes one that names the output."""
        try:
            yield
        except (OSError, CheckpointError) as error:
            cause = error.__cause__ if isinstance(error, CheckpointError) else error
            if not isinstance(cause, OSError) or (cause is not error and str(self.directory) not in str(error)):
                raise
            shutil.rmtree(self.directory, ignore_errors=True)
            raise write_failed(self.path, cause, unfinished=self.directory) from cause

    def _publish(self) -> None:
        """Flush everything, move the old directory aside, rename the new one, and only then remove the old one."""
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
    """Refuse an output that exists.

    Raises:
        CheckpointError: `path` exists; with `overwrite`, it exists and is not a checkpoint or a release.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(
            f"The output {path} exists already.", hint="choose another name, or replace it with -force"
        )
    if not is_replaceable(path):
        raise CheckpointError(
            f"The output {path} exists and is not a checkpoint, so it is not replaced.", hint="remove it yourself"
        )


def check_output_file(path: Path, *, overwrite: bool) -> None:
    """Refuse an output file that exists.

    Raises:
        CheckpointError: `path` is a directory, or a file and `overwrite` is False.
    """
    if path.is_dir():
        raise CheckpointError(f"The output must be a file, but {path} is a directory.")
    if path.exists() and not overwrite and not is_written_in_place(path):
        raise CheckpointError(
            f"The output {path} exists already.", hint="choose another name, or replace it with -force"
        )


def is_replaceable(path: Path) -> bool:
    """Whether a model may replace `path`: it is a model or an empty directory."""
    return path.is_dir() and (any((path / name).is_file() for name in MODEL_FILES) or not any(path.iterdir()))


def remove_directory(path: Path) -> None:
    """Remove a directory atomically: it is renamed first. Of a symlink only the link is removed."""
    if path.is_symlink():
        path.unlink()
        return
    trash = _beside(path.absolute(), "trash")
    path.rename(trash)
    shutil.rmtree(trash)


def recover(folder: Path, names: str, *, exclusive: bool = False) -> None:
    """Clean up after processes that were killed while they wrote in `folder`.

    Unfinished and half-removed outputs are removed. An output that was moved aside but not yet replaced is restored.

    Args:
        folder: The folder; may be missing.
        names: Pattern of the names of outputs.
        exclusive: No other process writes these outputs. Otherwise those of running processes and other hosts are kept.
    """
    pattern = re.compile(rf"\.({names})\.(tmp|old|trash)-(.+)-(\d+)")
    for leftover in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = pattern.fullmatch(leftover.name)
        if match is None or not (exclusive or (match[3] == socket.gethostname() and not _is_running(int(match[4])))):
            continue
        path = folder / match[1]
        if match[2] == "old" and not path.exists():
            leftover.rename(path)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def write_failed(path: Path, error: OSError, *, unfinished: Path | None = None) -> CheckpointError:
    """The error about an output that cannot be written.

    If the disk is full it says how many bytes are free, and if another file caused the error it names that file.

    Args:
        path: The output.
        error: The cause.
        unfinished: The hidden file or directory that becomes the output.
    """
    what = error.strerror or str(error)
    if error.errno in DISK_FULL:
        place = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
        if place is None or is_written_in_place(path):
            return CheckpointError(f"Writing {path} failed: {what}.")
        free = shutil.disk_usage(place).free
        return CheckpointError(f"Writing {path} failed: {what}; {free:,} bytes are free there.", hint="make room")
    blamed = None if error.filename is None else Path(os.fsdecode(error.filename))
    is_own = blamed is None or not {path, unfinished}.isdisjoint((blamed, *blamed.parents))
    return CheckpointError(f"Writing {path} failed: {what}{'' if is_own else f' ({blamed})'}.")


def flush(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(place: Path, kind: str) -> Path:
    """A hidden name beside an output, unique to this process."""
    return place.with_name(f".{place.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
