"""The frame of every command: it loads the configuration, starts the log, and turns errors into exit codes.

Some commands have actions, named by their first word: `onmt_llm_data report`.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from onmt_llm.atomic import DISK_FULL, TOO_MANY_FILES
from onmt_llm.checkpoint.directory import damage_ignored
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.outputs import Output, Paths, output_problems
from onmt_llm.config.loading.load import Checks, Loaded
from onmt_llm.config.loading.render import print_config
from onmt_llm.errors import CheckpointError, ConfigError, LostProcessError, OnmtLlmError, Problem, raise_problems
from onmt_llm.log import logger, setup_logging

T = TypeVar("T")

Actions = Mapping[str, Callable[[Loaded[Any]], int]]
"""The work of each action of a command."""

INTERRUPTED = 130
"""The shell's exit code for a command that Ctrl-C stopped."""


_NO_MEMORY = re.compile(
    "^MemoryError|^OutOfMemoryError|DefaultCPUAllocator: (can't allocate|not enough) memory|Storage size calculation|"
    "^ImportError: .*(failed to map segment|annot allocate memory)"
)
"""The messages of Python, torch on CPU, torch on GPU and the loader of libraries for exhausted memory."""
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE})
"""Errors of the file system that are no mistake of ours: a folder of another user, a name that is too long, a disk that
fails."""
_NO_FILES = re.compile("Too many open files")
_SMALLER = (
    "lower batch_size, beam_size, the lengths or the sizes of the model; training has use_ckpting and "
    "loss_chunk_tokens too, and onmt_llm_train -dry_run estimates what a run needs"
)


def run(work: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command; print an error that is meant for the user as a message, and return its exit code.

    Args:
        work: Takes the arguments and returns the exit code.
        argv: Arguments without the program's name; None = those of the process.
    """
    try:
        code = work(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except OnmtLlmError as error:
        if not (isinstance(error, LostProcessError) and error.said):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()  # the reader (`| head`) has gone
        return 1
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            return _too_many_files()
        # the disk of standard output, or of temporary files, may be full
        if error.errno in DISK_FULL:
            print(f"error: {error.strerror}.", file=sys.stderr)
            _discard_output()
            return CheckpointError.exit_code
        if error.errno not in _REFUSED or error.filename is None:
            raise
        print(f"error: {os.fsdecode(error.filename)} cannot be used: {error.strerror}.", file=sys.stderr)
        return CheckpointError.exit_code
    except (MemoryError, RuntimeError, ImportError) as error:
        text = f"{type(error).__name__}: {error}"
        if _NO_FILES.search(text):
            return _too_many_files()
        if not _NO_MEMORY.search(text):
            raise
        match = re.search(r"allocate ([\d.]+ \w+)", text)
        size = f": {match[1]} were to be allocated at once" if match else ""
        print(f"error: The command needs more memory than there is{size}.\n  hint: {_SMALLER}", file=sys.stderr)
        return OnmtLlmError.exit_code


def _too_many_files() -> int:
    """Report that no more files can be opened; returns the exit code."""
    print(
        "error: The command needs more open files than it may have.\n  hint: ulimit -n 4096 allows more",
        file=sys.stderr,
    )
    return OnmtLlmError.exit_code


def _discard_output() -> None:
    """Discard unprinted output: flushing it at exit would raise the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class CheckedJob:
    """A command of `JOBS` and the checks of its configuration, for the command line and for Python.

    Attributes:
        command: Its name in `JOBS`.
        paths: Gives its inputs and outputs.
        checks: Gives the problems of a configuration whose values are valid, e.g. missing files.
        switches: Flags that are not options, with their help.
    """

    command: str
    paths: Callable[[Loaded[Any]], Paths]
    checks: Checks | None = None
    switches: Mapping[str, str] = field(default_factory=dict)

    def load(self, argv: Sequence[str], values: Mapping[str, Any] | None = None) -> Loaded[Any]:
        """Load and check its configuration; see `config.loading.load`."""
        return load_job(self.command, argv, values=values, switches=self.switches, checks=self._problems)

    def _problems(self, loaded: Loaded[Any]) -> Iterator[Problem]:
        yield from () if self.checks is None else self.checks(loaded)
        log = log_file(loaded)
        yield from output_problems(loaded, self.paths(loaded), [Output("log_file", log)] if log else [])


def run_job(job: CheckedJob, work: Callable[[Loaded[Any]], int], argv: Sequence[str] | None) -> int:
    """Run a job as a command: load its configuration, start the log, and call `work`.

    Args:
        job: The job.
        work: Takes the configuration and returns the exit code. It imports torch itself, so problems that can be found
            without torch are reported first.
        argv: Arguments without the program's name; None = those of the process.
    """

    def load_and_work(words: Sequence[str]) -> int:
        loaded = job.load(words)
        if loaded.switches["print_config"]:
            print(print_config(loaded))
            return 0
        open_log(log_file(loaded))
        return perform(work, loaded)

    return run(load_and_work, argv)


def perform(work: Callable[[Loaded[Any]], T], loaded: Loaded[Any]) -> T:
    """Log the notes about a configuration, and call `work` with it; its errors name the place of an option.

    Raises:
        OnmtLlmError: From `work`.
    """
    log_notes(loaded)
    ignored = loaded.job.integrity.ignore_damage if hasattr(loaded.job, "integrity") else False
    try:
        with damage_ignored(ignored):
            return work(loaded)
    except OnmtLlmError as error:
        _add_place(error, loaded)
        raise


def _add_place(error: OnmtLlmError, loaded: Loaded[Any]) -> None:
    """Put the place of the option at fault in front of the message of an error, as the checks do."""
    if error.problems:
        raise_problems(replace(each, where=each.where or loaded.place_of(each.sentence)) for each in error.problems)
    where = loaded.place_of(error.message)
    if where and where not in error.message:
        error.message = f"{where}  {error.message}"


def log_notes(loaded: Loaded[Any]) -> None:
    """Log the warnings and notes about a valid configuration."""
    for warning in loaded.warnings:
        logger.warning(warning)
    for note in loaded.notes:
        logger.info(note)


def required(loaded: Loaded[Any], section: str, name: str, usage: str) -> str:
    """The value of a required option.

    Raises:
        ConfigError: The option is not given.
    """
    value = getattr(getattr(loaded.job, section), name)
    if not value:
        raise ConfigError(f"'{name}' must be given, but is not.", hint=usage)
    return str(value)


def split_action(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """The action ("" = none) and the other arguments; None = those of the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    return (words[0], words[1:]) if words and not words[0].startswith("-") else ("", words)


def run_action(
    command: str,
    argv: Sequence[str] | None,
    actions: Actions,
    usage: str,
    *,
    paths: Callable[[str, Loaded[Any]], Paths],
    checks: Callable[[str, Loaded[Any]], Iterator[Problem]],
    readers: Mapping[str, Collection[str]] | None = None,
) -> int:
    """Run a command whose first argument is an action; returns its exit code.

    Without an action `-print_config` works, and `checks` are called with "".

    Args:
        command: Its name in `JOBS`.
        argv: Arguments without the program's name; None = those of the process.
        actions: What each action does.
        usage: The hint of an unknown action.
        paths: Gives the inputs and outputs of an action.
        checks: Gives the problems of a configuration whose values are valid, for an action that is known.
        readers: The actions that read an option, for options that not all of them read.
    """
    action, words = split_action(argv)

    def problems(loaded: Loaded[Any]) -> Iterator[Problem]:
        if action and action not in actions:
            yield unknown_action(action, actions, usage)
        else:
            if action:
                yield from _unread(action, readers or {}, loaded)
            yield from checks(action, loaded)

    def work(loaded: Loaded[Any]) -> int:
        if action not in actions:
            raise_problems([unknown_action(action, actions, usage)])
        return actions[action](loaded)

    return run_job(CheckedJob(command, functools.partial(paths, action), problems), work, words)


def _unread(action: str, readers: Mapping[str, Collection[str]], loaded: Loaded[Any]) -> Iterator[Problem]:
    """Flags that the action does not read; in a YAML file they may be meant for another one."""
    for option, actions in readers.items():
        where = loaded.where(option)
        if where.startswith("-") and action not in actions:
            yield Problem(f"'{option}' needs the action {' or '.join(actions)}, but that is {action}.", where)


def unknown_action(action: str, actions: Collection[str], usage: str) -> Problem:
    """The problem of an action that does not exist."""
    return Problem(f"The first word must be one of {', '.join(actions)}, but is '{action}'.", hint=usage)


def open_log(file: str | None) -> None:
    """Start the log of a process.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        if file is not None:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        setup_logging(log_file=file)
    except OSError as error:
        raise ConfigError(f"'log_file' must be a file that can be written, but {file}: {error.strerror}.") from error


def log_file(loaded: Loaded[Any]) -> str | None:
    """The log file that a configuration names."""
    return next((s.log_file for _, s in loaded.job if hasattr(s, "log_file")), None)
