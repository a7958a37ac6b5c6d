"""Actions: the first word of the commands that have several, such as `onmt_llm_data report`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import Problem, raise_problems

Actions = Mapping[str, Callable[[Loaded[Any]], int]]


def split_action(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """The action ("" = none) and the other arguments; None = those of the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    return (words[0], words[1:]) if words and not words[0].startswith("-") else ("", words)


def run_action(action: str, actions: Actions, usage: str, loaded: Loaded[Any]) -> int:
    """Run one of `actions`.

    Raises:
        ConfigError: There is no such action.
    """
    raise_problems(unknown_action(action, actions, usage))
    return actions[action](loaded)


def unknown_action(action: str, actions: Actions, usage: str) -> Iterator[Problem]:
    """The problem of an action that does not exist."""
    if action not in actions:
        sentence = f"The first word must be one of {', '.join(actions)}, but is '{action}'."
        yield Problem(sentence, hint=usage)
