"""Files that a command writes: complete under their names or not there at all, and never in the place of its inputs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from onmt_llm.errors import CheckpointError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk, or a share of it, that has no more room."""
LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""
LONGEST_STEM = 160
"""Bytes of a name that others are made of: `<name>_step_100000_ema`, and hidden ones with the name of the machine."""


@contextlib.contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Where to write a file: what is there when the context ends without an error becomes `path`, all at once.

    A symlink keeps pointing: the file that it points to is replaced. What is no file (a device, a pipe), or is where
    standard output goes, is written to as it is, and never replaced.

    Raises:
        CheckpointError: It cannot be written.
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
        temporary = target.with_name(f".{target.stem[:40]}.tmp-{os.getpid()}{target.suffix[:20]}")
        try:
            yield temporary
            if target.exists():
                shutil.copymode(target, temporary)
            flush(temporary)
            temporary.replace(target)
            flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_failed(path, error, unfinished=temporary) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file as `output_file` does, with the line ends that `text` has."""
    with output_file(path) as place:
        place.write_text(text, encoding="utf-8", newline="\n")


def is_written_in_place(path: Path) -> bool:
    """Whether `path` is something that must not be replaced: no file, or where standard output goes."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(there.st_mode) and not stat.S_ISDIR(there.st_mode):
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.path.samestat(there, os.fstat(sys.stdout.fileno()))
    return False


def write_failed(path: Path, error: OSError, *, unfinished: Path | None = None) -> CheckpointError:
    """The sentence about an output that cannot be written.

    It has the bytes that are free where the disk is full, and the name of the file that is to blame where that is
    another one.

    Args:
        path: The output.
        error: What went wrong.
        unfinished: Where the output is until it is complete: a file, or a directory.
    """
    what = error.strerror or str(error)
    if error.errno in FULL:
        place = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
        if place is None or is_written_in_place(path):
            return CheckpointError(f"Writing {path} failed: {what}.")
        free = shutil.disk_usage(place).free
        return CheckpointError(f"Writing {path} failed: {what}; {free:,} bytes are free there.", hint="make room")
    blamed = None if error.filename is None else Path(os.fsdecode(error.filename))
    is_own = blamed is None or not {path, unfinished}.isdisjoint((blamed, *blamed.parents))
    return CheckpointError(f"Writing {path} failed: {what}{'' if is_own else f' ({blamed})'}.")


def name_problem(name: str) -> str | None:
    """Why no file can have `name`, or one that begins with it, as the end of a sentence; None = it can."""
    if not name.strip("."):
        return f"is '{name}'"
    if odd := next((character for character in name if character in "/\\" or not character.isprintable()), None):
        return f"holds {odd!r}"
    length = len(os.fsencode(name))
    return f"has {length} bytes" if length > LONGEST_STEM else None


def place_problem(path: str, *, folder: bool = False) -> str | None:
    """Why nothing can be written at `path`, as the end of a sentence (`..., but <problem>`); None = it can.

    Args:
        path: The output.
        folder: It is a directory, or what names of outputs begin with.
    """
    if "\0" in path:
        return "holds a zero byte"
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(path).parts):
        return f"has a name of more than {LONGEST_NAME} bytes"
    place = Path(path)
    try:
        if not folder and place.is_dir():
            return f"'{path}' is a directory"
        existing = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    except OSError as error:
        return f"'{path}' cannot be reached ({error.strerror or error})"
    if not existing.is_dir() and (folder or existing != place):
        return f"{existing} is a file"
    if not os.access(existing, os.W_OK):
        return f"{existing} must not be written to"
    return None


def replaced_input(output: str | Path, inputs: Iterable[str], *, folder: bool = False) -> str | None:
    """The input that an output would take the place of, or be written into; links are followed.

    Args:
        output: A file, or a directory.
        inputs: Files, and directories of models.
        folder: The output is a directory, which is replaced as a whole where it is there already.
    """
    place = Path(os.path.realpath(output))
    for given in inputs:
        read = Path(os.path.realpath(given))
        inside = (read in place.parents and read.is_dir()) if not folder else place in read.parents and place.exists()
        if inside or place == read or (place.exists() and read.exists() and os.path.samefile(place, read)):
            return given
    return None


def flush(path: Path) -> None:
    """Have the system write a file, or what a directory lists, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
