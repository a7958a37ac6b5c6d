"""Commands of the package and scripts of the repository, run in this process: importing torch takes most of a start."""

from __future__ import annotations

import io
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from onmt_llm import log
from onmt_llm.commands import COMMANDS


@contextmanager
def _as_a_process(folder: Path, argv: list[str]) -> Iterator[None]:
    """The working directory, arguments and import path of a program; all of them and the log are restored."""
    before, words, path = Path.cwd(), sys.argv, list(sys.path)
    handlers, level, propagate, said = list(log.logger.handlers), log.logger.level, log.logger.propagate, set(log._said)
    os.chdir(folder)
    sys.argv = argv
    log._said.clear()
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv, sys.path[:] = words, path
        log.logger.handlers[:], log.logger.level, log.logger.propagate = handlers, level, propagate
        log._said.update(said)


def call(folder: Path, command: str | Path, *words: str | Path, code: int = 0) -> str:
    """Run a command, or a Python script, in a folder.

    Args:
        folder: The working directory.
        command: A name in `COMMANDS`, or the path of a script.
        words: Its arguments.
        code: The exit code that is expected.

    Returns:
        What it printed: standard output, then standard error.
    """
    argv = [str(command), *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    with _as_a_process(folder, argv), redirect_stdout(out), redirect_stderr(err):
        try:
            if argv[0] in COMMANDS:
                found = COMMANDS[argv[0]].call(argv[1:])
            else:
                runpy.run_path(argv[0], run_name="__main__")
                found = 0
        except SystemExit as done:
            found = int(done.code or 0)
    printed = out.getvalue() + err.getvalue()
    assert found == code, printed
    return printed
