"""`dialogue`: normalise transcribed dialogues, and train on several variants of each.

The rules, the variants and the chances with which they are drawn are those of the Claire models (see `text`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import INT64
from onmt_llm.config.section import Names, Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.dialogue import text as dialogues
from onmt_llm.data.transforms.dialogue.names import WORDINGS
from onmt_llm.data.transforms.dialogue.text import Wording
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.errors import DataError
from onmt_llm.text.segment import Segment

Step = Literal["events", "names", "lower", "punctuation", "dashes"]
STEPS: tuple[Step, ...] = ("events", "names", "lower", "punctuation", "dashes")


class DialogueConfig(Section):
    """Options of `dialogue`: transcribed dialogues, with a tag such as `[speaker001:]` before each turn."""

    dialogue_language: Literal["en", "fr"] = "en"
    """Language of the words and names that are inserted: `[Speaker 1:]`, `[Intervenant 1:]`."""
    dialogue_speaker: Annotated[str, Field(pattern=r"^[^\[\]\n:]+$")] | None = None
    """Word for a speaker without a name, before the number; null = by `dialogue_language`."""
    dialogue_keep_events: bool = False
    """Keep the events of `dialogue_events`. Otherwise all tags but those of speakers are removed, and `[PII]` is
    replaced by a first name."""
    dialogue_events: dict[str, Annotated[str, Field(pattern=r"^[^\[\]\n:]+$")]] | None = None
    """Events to keep, and what they are called in the text; null = by language: `{PII: Name, NOISE: noise, LAUGHTER:
    laughter}`."""
    dialogue_variants: Annotated[int, Field(ge=0, le=100)] = 0
    """Training: maximum number of variants of each dialogue, in addition to its normalised text."""
    dialogue_steps: Names[Step] = Field(default_factory=lambda: list(STEPS))
    """What variants differ in: `events` (removed), `names` (of speakers, replaced by numbers, or numbers by names),
    `dashes` (instead of the tags of two speakers; the tag of a single one is removed), `lower` case, and `punctuation`
    (removed)."""
    dialogue_draw: Literal["all", "one"] = "all"
    """Training: add the variants to each dialogue (`all`: the same in every epoch, so the corpus can be packed), or
    read `one` text instead of each dialogue, drawn again in every epoch from all of its variants and its normalised
    text."""
    dialogue_seed: Annotated[int, Field(ge=0, le=INT64)] = 0
    """Seed of the variants. What is drawn depends on it and on the text of the dialogue, not on its place."""


@TRANSFORMS.register("dialogue")
class Dialogue(Transform[DialogueConfig]):
    """Normalises dialogues and, in training, adds variants.

    Args:
        maker: Makes the texts of a dialogue.
        variants: Maximum number of variants.
        draws_one: Keep one text of each dialogue.
        seed: Seed of the variants.
    """

    section = "dialogue"
    Config = DialogueConfig
    needs_text = True
    rewrites = True

    def __init__(self, maker: VariantMaker, *, variants: int, draws_one: bool, seed: int) -> None:
        super().__init__()
        self._maker = maker
        self._variants = variants
        self._draws_one = draws_one
        self._seed: tuple[int, ...] = (seed,)

    @property
    def draws(self) -> bool:
        return self._draws_one

    @classmethod
    def build(cls, config: DialogueConfig, corpus: CorpusConfig, context: TransformContext) -> Dialogue:
        wording = WORDINGS[config.dialogue_language]
        wording = replace(
            wording,
            speaker=config.dialogue_speaker or wording.speaker,
            events=wording.events if config.dialogue_events is None else config.dialogue_events,
        )
        steps = frozenset(config.dialogue_steps)
        return cls(
            VariantMaker(wording, keep_events=config.dialogue_keep_events, steps=steps),
            variants=config.dialogue_variants if context.training else 0,
            draws_one=context.training and config.dialogue_draw == "one",
            seed=config.dialogue_seed,
        )

    def __call__(self, example: Example) -> Example | None:
        raise NotImplementedError("one example becomes several: use `batch`")

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        return [variant for example in examples for variant in self._texts(example)]

    def reseed(self, seed: int) -> None:
        if self._draws_one:
            self._seed = (self._seed[0], seed)

    def _texts(self, example: Example) -> list[Example]:
        text = plain_text(example, self.name).text or ""
        random = Random(int.from_bytes(blake2b(repr((self._seed, text)).encode(errors="replace")).digest(), "little"))
        if self._draws_one:
            texts = [random.choice(self._maker.all(text, random))]
        else:
            texts = self._maker.some(text, self._variants, random)
        if not texts[0]:
            self.dropped["empty"] += 1
            return []
        self.made += len(texts) - 1
        return [replace(example, src=[Segment(each)]) for each in texts]


@dataclass(frozen=True)
class VariantMaker:
    """Makes the normalised text and the variants of dialogues.

    Attributes:
        wording: Words and names to insert.
        keep_events: Whether events are kept in the normalised text.
        steps: The steps of which variants consist.
    """

    wording: Wording
    keep_events: bool = False
    steps: frozenset[Step] = frozenset(STEPS)

    def some(self, text: str, number: int, random: Random) -> list[str]:
        """The normalised text, and then at most `number` different variants, in random order.

        One variant is made by a random subset of the possible steps; several are drawn from all.
        """
        if number == 0:
            return [self._normalised(text, random)]
        if number == 1:
            normalised = self._normalised(text, random)
            return list(dict.fromkeys((normalised, self._one(text, normalised, random))))
        normalised, *variants = self.all(text, random)
        random.shuffle(variants)
        return [normalised, *variants[:number]]

    def all(self, text: str, random: Random) -> list[str]:
        """The normalised text, and then all variants."""
        normalised = self._normalised(text, random)
        possible = self._possible(text, normalised)
        found, base = [normalised], normalised
        if "events" in possible:
            base = self._without_events(base, random)
            found.append(base)
        bases = [base]
        if "names" in possible:
            bases.append(self._renamed(text, base, random))
        if "dashes" in possible:
            bases.append(_untagged(text, base))
        found += bases[1:]
        for each in bases:
            found += _simpler(each, possible, random)
        return [each for each in dict.fromkeys(found) if each or each is normalised]

    def _one(self, text: str, normalised: str, random: Random) -> str:
        steps = self._possible(text, normalised)
        random.shuffle(steps)
        chosen = steps[: random.randint(1, len(steps))] if steps else []
        base = self._without_events(normalised, random) if "events" in chosen else normalised
        if "dashes" in chosen:
            base = _untagged(text, base)
        elif "names" in chosen:
            base = self._renamed(text, base, random)
        if "punctuation" in chosen:
            base = dialogues.without_punctuation(base)
        return dialogues.in_lower_case(base) if "lower" in chosen else base

    def _possible(self, text: str, normalised: str) -> list[Step]:
        """The steps that change a text."""
        number = len(dialogues.speakers(text))
        changes: dict[Step, bool] = {
            "events": self.keep_events and dialogues.has_events(normalised),
            "names": number > 0,
            "lower": dialogues.has_capitals(text),
            "punctuation": dialogues.has_punctuation(text),
            "dashes": number in (1, 2),
        }
        return [step for step in STEPS if step in self.steps and changes[step]]

    def _normalised(self, text: str, random: Random) -> str:
        return dialogues.normalised(text, self.wording, random, keep_events=self.keep_events)

    def _without_events(self, text: str, random: Random) -> str:
        return dialogues.normalised(text, self.wording, random, keep_events=False)

    def _renamed(self, text: str, base: str, random: Random) -> str:
        if dialogues.has_names(text):
            return dialogues.with_numbers(base, self.wording)
        return dialogues.with_names(base, self.wording, random)


def plain_text(example: Example, transform: str) -> Segment:
    """The only segment of an example that is plain text.

    Raises:
        DataError: It is a conversation of messages, or has a target.
    """
    if len(example.src) != 1 or example.tgt:
        raise DataError(
            f"Transform '{transform}' must be given plain text, with a tag before each turn, but "
            f"{example.path}:{example.line} of corpus '{example.corpus}' is a prompt with an answer, or a list of "
            "messages.",
            hint="path_txt reads such files: a dialogue ends at an empty line",
        )
    return example.src[0]


def _untagged(text: str, base: str) -> str:
    return dialogues.with_dashes(base) if len(dialogues.speakers(text)) == 2 else dialogues.as_monologue(base)


def _simpler(text: str, possible: Sequence[Step], random: Random) -> list[str]:
    """Without capitals and punctuation: one after the other, in random order."""
    steps = [
        change
        for step, change in (("punctuation", dialogues.without_punctuation), ("lower", dialogues.in_lower_case))
        if step in possible
    ]
    if len(steps) == 2 and random.random() < 0.5:
        steps.reverse()
    found = []
    for change in steps:
        text = change(text)
        found.append(text)
    return found
