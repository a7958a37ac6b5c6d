"""The outputs of a command, and the check that none of them replaces an input or another output."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from onmt_llm.cli.inputs import Input
from onmt_llm.config.checkpoint import read_config
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import OnmtLlmError, Problem, raise_problems
from onmt_llm.output_checks import place_problem, replaced_input

STANDARD = "-"
"""Standard input or output."""


@dataclass(frozen=True)
class Output:
    """An output of a command.

    Attributes:
        name: The option that sets its path.
        path: The file or directory.
        is_folder: It is a directory that is replaced as a whole.
        collects: It is a directory to which files are added.
    """

    name: str
    path: str
    is_folder: bool = False
    collects: bool = False


@dataclass(frozen=True)
class Paths:
    """Inputs and outputs of a command.

    Attributes:
        reads: Its inputs.
        writes: Its outputs.
    """

    reads: Sequence[Input] = ()
    writes: Sequence[Output] = field(default_factory=list)


def output_problems(loaded: Loaded[Any], paths: Paths, further: Sequence[Output] = ()) -> Iterator[Problem]:
    """Problems of outputs that cannot be written, or would replace an input or each other.

    Args:
        loaded: The job.
        paths: Its inputs and outputs.
        further: Other outputs.
    """
    configs: list[Input] = [("'config'", path, ()) for path in loaded.configs]
    reads = [each for each in (*paths.reads, *configs) if each[1] != STANDARD]
    known = [each for each in (*paths.writes, *further) if each.path != STANDARD and each.name not in loaded.invalid]
    for output in known:
        if sentence := _problem(output, reads):
            yield Problem(sentence, loaded.where(output.name))
    for one, other in combinations((each for each in known if not each.collects), 2):
        if os.path.realpath(one.path) == os.path.realpath(other.path):
            sentence = f"'{one.name}' and '{other.name}' must be different paths, but both are {one.path}."
            yield Problem(sentence, loaded.where(other.name))


def check_outputs(loaded: Loaded[Any], paths: Paths) -> None:
    """Raise the problems that `output_problems` finds.

    Raises:
        ConfigError: There are problems.
    """
    raise_problems(output_problems(loaded, paths))


def _problem(output: Output, reads: Sequence[Input]) -> str | None:
    is_folder = output.is_folder or output.collects
    if problem := place_problem(output.path, folder=is_folder):
        return f"'{output.name}' must be {'a directory' if is_folder else 'a file'} that can be written, but {problem}."
    if output.collects:
        return None
    names = {path: name for name, path, _ in reads}
    replaced = replaced_input(output.path, names, folder=output.is_folder)
    if replaced is None:
        return None
    inside = "" if os.path.realpath(replaced) == os.path.realpath(output.path) else f", with {replaced}"
    return (
        f"'{output.name}' must not replace an input, but {output.path} would: "
        f"it is the path of {names[replaced]}{inside}."
    )


def output_option(loaded: Loaded[Any], section: str, name: str, *, is_folder: bool = False) -> list[Output]:
    """The output that an option names, as a list; empty if the option is not given."""
    path = getattr(getattr(loaded.job, section), name)
    return [Output(name, str(path), is_folder=is_folder)] if path else []


def model_files(loaded: Loaded[Any], section: str, names: Iterable[str]) -> Iterator[Input]:
    """The models that options of one section name, with the base models of adapters: directories, or other files."""
    for name in names:
        given = getattr(getattr(loaded.job, section), name)
        for path in [given] if isinstance(given, str) else given or ():
            for place in with_base_models(path):
                yield f"'{name}'", place, (name,)


def with_base_models(model: str) -> Iterator[str]:
    """The path of a model as given, with and without `.pt`, and the base model of an adapter."""
    for path in dict.fromkeys((model, model.removesuffix(".pt"), f"{model}.pt")):
        yield path
        with contextlib.suppress(OnmtLlmError, ValueError):
            addition = read_config(Path(path)).addition
            if addition is not None and addition.base:
                yield from (addition.base, str(Path(path) / addition.base))
