"""Loss mask of conversations: trained roles, flags of single turns, end-of-turn tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onmt_llm.config.data import CorpusConfig, DataConfig, TrainOnEos
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.message import Message


@dataclass(frozen=True)
class LossMask:
    """What of a conversation is trained.

    Attributes:
        prompts: All text is, as in text files without a mask; a turn's own flag still counts.
        roles: Roles whose turns are.
        on_eos: Which of the tokens that end a turn are: of trained turns, the last of all, all, or none.
    """

    prompts: bool = False
    roles: frozenset[str] = frozenset({"assistant"})
    on_eos: TrainOnEos = "turn"

    @classmethod
    def of(cls, data: DataConfig, corpus: CorpusConfig) -> LossMask:
        """As the options say; whether prompts are trained is for the parser to know."""
        return cls(
            roles=frozenset(data.train_roles if corpus.train_roles is None else corpus.train_roles),
            on_eos=corpus.train_on_eos or data.train_on_eos,
        )

    def mark(self, messages: Sequence[Message]) -> list[Message]:
        """The turns, each with its flag: its own, or that of its role."""
        return [
            message if message.train is not None else replace(message, train=self.prompts or message.role in self.roles)
            for message in messages
        ]

    def mark_ends(
        self, segments: Sequence[Segment], messages: Sequence[Message], stop_tokens: Collection[str]
    ) -> list[Segment]:
        """The segments of a rendered conversation, with the marks that turns alone do not decide.

        Args:
            segments: As a template rendered `mark(messages)`.
            messages: As they came, with their own flags only.
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
        """Whether the EOS behind a conversation without ends of turns is trained; None = as its last part."""
        return None if self.on_eos == "turn" else self.on_eos != "none"


def read_flag(turn: Mapping[str, Any]) -> bool | None:
    """A turn's own mark: `train` (Axolotl: true or false) or `weight` (OpenAI, TRL: 0 or 1); None = it has none.

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
