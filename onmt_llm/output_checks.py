"""Checks before any work is done: an output can be written, and replaces neither an input nor anything foreign."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from onmt_llm.errors import CheckpointError

MODEL_FILES = ("config.yaml", "config.json", "adapter_config.json")
"""Files that mark a directory as a model; no other directory is ever replaced."""
LONGEST_NAME = 255
"""Bytes of a file name, on nearly every file system."""
LONGEST_STEM = 160
"""Bytes of a name from which others are made: `<name>_step_100000_ema`, and hidden ones with the host name."""


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


def name_problem(name: str) -> str | None:
    """Why no file name can begin with `name`, as the end of a sentence (`..., but <problem>`); None = one can."""
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
        folder: It is a directory, or a prefix of output names.
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
    """The input that an output would replace, or into which it would be written; links are followed.

    Args:
        output: A file or a directory.
        inputs: Files and model directories.
        folder: The output is a directory, which is replaced as a whole if it exists.
    """
    place = Path(os.path.realpath(output))
    for given in inputs:
        read = Path(os.path.realpath(given))
        inside = (read in place.parents and read.is_dir()) if not folder else place in read.parents and place.exists()
        if inside or place == read or (place.exists() and read.exists() and os.path.samefile(place, read)):
            return given
    return None


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


def check_space(path: Path, needed: int) -> None:
    """Refuse an output for which the disk has too little free space.

    Args:
        path: The output.
        needed: Its size in bytes.

    Raises:
        CheckpointError: Fewer bytes are free.
    """
    place = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    if place is None:
        return
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{path} needs {needed:,} bytes on the disk, but {free:,} are free in {place}.", hint="make room"
        )
