"""`Segment`: a stretch of an example with one answer to "does the loss count it?"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Segment:
    """Text, or tokens once it has been tokenised.

    Attributes:
        text: Text, line breaks as real newlines; None once tokenised.
        tokens: Vocabulary pieces; control tokens (`<|im_start|>`) arrive as tokens and are never made from text.
        train_on: The loss counts this stretch's tokens.
        starts_round: The next round of a conversation begins here: another question, with what precedes it.
    """

    text: str | None = None
    tokens: list[str] | None = None
    train_on: bool = True
    starts_round: bool = False
