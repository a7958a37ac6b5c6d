"""The errors that a user can cause, and their exit codes.

A message is one sentence: what must hold, what it is instead, and where. The hint says what to do about it.

Several problems are reported together (`raise_problems`). The exit code is then the highest of theirs: a configuration
(2) is corrected in an editor, but missing data (3) or checkpoints (4) have to be made or fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest


class OnmtLlmError(Exception):
    """Base of all errors with a message written for the user.

    Examples:
        >>> try:
        ...     onmt_llm.train("run.yaml", train_stepz=5)
        ... except onmt_llm.OnmtLlmError as error:
        ...     print(error.exit_code, error.message)
        2 'train_stepz' is not a known option: did you mean 'train_steps'?

    Args:
        message: One sentence: what must hold, what it is, where.
        hint: What to do about it; printed on a line of its own.

    Attributes:
        problems: The problems that are reported together; empty if there is only one.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # A library's message at the end of ours often has a full stop of its own.
        message = re.sub(r"(?<!\.)\.(\)?)\.$", r"\1.", message)
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems: Sequence[Problem] = ()

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class LostProcessError(OnmtLlmError):
    """Another process of a training run has died.

    Args:
        message, hint: As those of `OnmtLlmError`.
        said: Another process has reported it already, so this one does not.
    """

    def __init__(self, message: str, *, hint: str | None = None, said: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.said = said


class ConfigError(OnmtLlmError):
    """The configuration or the command line is wrong.

    Examples:
        >>> onmt_llm.load_config("run.yaml", lora_rank=0)
        Traceback (most recent call last):
        onmt_llm.errors.ConfigError: 'lora_rank' must be >= 1, but is 0.
    """

    exit_code = 2


class DataError(OnmtLlmError):
    """A corpus, vocabulary or tokeniser file is wrong or missing.

    Examples:
        >>> onmt_llm.load_config("run.yaml", src_vocab="words.txt")
        Traceback (most recent call last):
        onmt_llm.errors.DataError: 'src_vocab' must be a file that exists, but 'words.txt' is not.
    """

    exit_code = 3


class CheckpointError(OnmtLlmError):
    """A checkpoint, adapter or weight file is wrong, incomplete or missing, or an output cannot be written.

    Examples:
        >>> onmt_llm.convert("falcon", "checkpoint")
        Traceback (most recent call last):
        onmt_llm.errors.CheckpointError: 'model_dir' must be a folder or a file that exists, but 'falcon' is not.
    """

    exit_code = 4


class UnsupportedError(OnmtLlmError):
    """A valid request that this machine, package set or file format cannot serve.

    Examples:
        >>> onmt_llm.convert("words", "words_hf", to="hf")
        Traceback (most recent call last):
        onmt_llm.errors.UnsupportedError: transformers reads tokenisers of kind huggingface and sentencepiece, but ...
    """

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One of several problems that are reported together.

    Attributes:
        sentence: What must hold, and what it is instead.
        where: Its place: `file:line`, or the flag; empty = none.
        hint: What to do about it.
        kind: The class of the error.
    """

    sentence: str
    where: str = ""
    hint: str | None = None
    kind: type[OnmtLlmError] = ConfigError

    @classmethod
    def of(cls, error: OnmtLlmError, where: str = "") -> Problem:
        """The problem that an error describes."""
        return cls(error.message, where, error.hint, type(error))

    @property
    def message(self) -> str:
        """The sentence, with its place in front."""
        return f"{self.where}  {self.sentence}" if self.where else self.sentence


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise one error for all problems, in order; without problems, raise nothing."""
    found = list(dict.fromkeys(problems))
    if not found:
        return
    kind = max((problem.kind for problem in found), key=lambda each: each.exit_code)
    if len(found) == 1:
        raise kind(found[0].message, hint=found[0].hint)
    lines = []
    for problem, following in zip_longest(found, found[1:]):
        repeated = following is not None and following.hint == problem.hint
        lines.append(problem.message + (f"\n    hint: {problem.hint}" if problem.hint and not repeated else ""))
    error = kind("\n  ".join([f"{len(found)} things are wrong:", *lines]))
    error.problems = found
    raise error
