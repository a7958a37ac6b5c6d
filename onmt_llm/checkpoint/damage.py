"""What is done about a damaged model: an error, or a warning where the user wants to rescue something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger

_MOST_SHOWN = 5
_ignoring = False


@contextlib.contextmanager
def damage_ignored(ignored: bool = True) -> Iterator[None]:
    """While it lasts, damage is a warning in this process, not an error: for what is to be rescued."""
    global _ignoring
    before, _ignoring = _ignoring, ignored or _ignoring
    try:
        yield
    finally:
        _ignoring = before


def refuse(sentence: str, *, hint: str, always: bool = False) -> None:
    """Raise, or while damage is ignored warn of, something that makes a model useless.

    Args:
        sentence: What must hold, what it is, where.
        hint: What to do about it.
        always: Also while damage is ignored.

    Raises:
        CheckpointError: It is not ignored.
    """
    if _ignoring and not always:
        logger.warning("%s It is used as it is (ignore_damage).", sentence)
        return
    raise CheckpointError(sentence, hint=hint if always else f"{hint}; -ignore_damage uses it as it is")


def refuse_damage(directory: Path, problems: Sequence[str], *, always: bool = False) -> None:
    """Refuse what is not as it was written.

    Args:
        directory: The checkpoint, adapter or release.
        problems: One phrase each; empty = nothing is wrong.
        always: Also while damage is ignored.

    Raises:
        CheckpointError: There are problems, and they are not ignored.
    """
    if problems:
        shown = "; ".join(problems[:_MOST_SHOWN]) + ("; ..." if len(problems) > _MOST_SHOWN else "")
        refuse(
            f"{directory} must be as it was written, but is not: {shown}.",
            hint=f"copy it again, or after a change of your own: onmt_llm_checkpoint seal -model {directory}",
            always=always,
        )
