"""What happens when a model is damaged: an error, or a warning with `ignore_damage`."""

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
    """In this context, damage is a warning instead of an error, so that a damaged model can be rescued."""
    global _ignoring
    before, _ignoring = _ignoring, ignored or _ignoring
    try:
        yield
    finally:
        _ignoring = before


def refuse(sentence: str, *, hint: str, always: bool = False) -> None:
    """Raise an error about something that makes a model unusable, or log a warning if damage is ignored.

    Args:
        sentence: What must hold, what it is, where.
        hint: What the user can do.
        always: Raise even if damage is ignored.

    Raises:
        CheckpointError: Damage is not ignored.
    """
    if _ignoring and not always:
        logger.warning("%s It is used nevertheless (ignore_damage).", sentence)
        return
    raise CheckpointError(sentence, hint=hint if always else f"{hint}; -ignore_damage uses it nevertheless")


def refuse_damage(directory: Path, problems: Sequence[str], *, always: bool = False) -> None:
    """Refuse files that differ from what was written.

    Args:
        directory: The checkpoint, adapter or release.
        problems: One phrase each; empty = no damage.
        always: Raise even if damage is ignored.

    Raises:
        CheckpointError: There are problems, and damage is not ignored.
    """
    if problems:
        shown = "; ".join(problems[:_MOST_SHOWN]) + ("; ..." if len(problems) > _MOST_SHOWN else "")
        refuse(
            f"{directory} must be as it was written, but is not: {shown}.",
            hint=f"copy it again; if you changed it yourself: onmt_llm_checkpoint seal -model {directory}",
            always=always,
        )
