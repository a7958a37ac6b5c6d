"""Checks before any work is done: an output has a name, a place and space, and replaces no input."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from onmt_llm.errors import CheckpointError

LONGEST_NAME = 255
"""Bytes of a file name, on nearly every file system."""
LONGEST_STEM = 160
"""Bytes of a name from which others are made: `<name>_step_100000_ema`, and hidden ones with the host name."""


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
