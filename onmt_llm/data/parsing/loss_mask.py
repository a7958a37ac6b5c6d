"""Loss mask of conversations: trained roles, flags of individual turns, end-of-turn tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onmt_llm.config.data import CorpusConfig, DataConfig, TrainOnEos
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.message import Message


@dataclass(frozen=True)
class LossMask:
    """Which parts of a conversation are trained.

    Attributes:
        prompts: All text is trained, as in text files without a mask, except turns whose own flag is false.
        roles: Roles whose turns are trained.
        on_eos: Which end-of-turn tokens are trained: those of trained turns, the last one, all, or none.
    """

    prompts: bool = False
    roles: frozenset[str] = frozenset({"assistant"})
    on_eos: TrainOnEos = "turn"

    @classmethod
    def of(cls, data: DataConfig, corpus: CorpusConfig) -> LossMask:
        """The mask according to the options; `prompts` is set by the parser."""
        return cls(
            roles=frozenset(data.train_roles if corpus.train_roles is None else corpus.train_roles),
            on_eos=corpus.train_on_eos or data.train_on_eos,
        )

    def mark(self, messages: Sequence[Message]) -> list[Message]:
        """Set the flag of each turn that has none, according to its role."""
        return [
            message if message.train is not None else replace(message, train=self.prompts or message.role in self.roles)
            for message in messages
        ]

    def mark_ends(
        self, segments: Sequence[Segment], messages: Sequence[Message], stop_tokens: Collection[str]
    ) -> list[Segment]:
        """Apply the parts of the mask that do not depend on turns to a rendered conversation.

        Args:
            segments: The rendered `mark(messages)`.
            messages: The original messages, with only their own flags.
            stop_tokens: Tokens that end a turn.
        """
        if self.prompts and all(message.train is None for message in messages):
            segments = [segment.like(train_on=True) for segment in segments]
        if self.on_eos == "turn":
            return list(segments)
        ends = [n for n, segment in enumerate(segments) if segment.tokens and segment.tokens[0] in stop_tokens]
        trained = {"last": ends[-1:], "all": ends, "none": []}[self.on_eos]
        return [
            segment.like(train_on=number in trained) if number in ends else segment
            for number, segment in enumerate(segments)
        ]

    @property
    def end_of_text(self) -> bool | None:
        """Whether the EOS after a conversation without end-of-turn tokens is trained; None = as its last part."""
        return None if self.on_eos == "turn" else self.on_eos != "none"


def read_flag(turn: Mapping[str, Any]) -> bool | None:
    """The flag of a turn: `train` (Axolotl: true or false) or `weight` (OpenAI, TRL: 0 or 1); None = no flag.

    Raises:
        ValueError: It has another value; the message begins with a verb.
    """
    for key in ("train", "weight"):
        value = turn.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or (key == "weight" and value in (0, 1)):
            return bool(value)
        known = "true or false" if key == "train" else "0 or 1"
        raise ValueError(f"must have {known} as a turn's '{key}', but has {value!r}")
    return None
