"""Transcribed dialogues as text: tags of speakers and events, normalisation, and the steps of their variants.

A dialogue is a text in which every turn begins with its speaker's tag: `[speaker001:]`, or `[Alison Jordy:]` if the
speaker has a name. Other tags are events: `[LAUGHTER]`, `[NOISE]`, `[PII]` (a name that was removed). The rules are
those with which the Claire models were trained (Hunter et al. 2023, "Claire: the OpenLLM-France dialogue models").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

SPEAKER = re.compile(r"\[[^\n\]]+:\]")
"""The tag of a speaker."""
REMOVED_NAME = "PII"
"""The event that stands for a name."""

_TAG = re.compile(r"\[([^\n\]]*)\]")
_NUMBERED = re.compile(r"speaker(\d+)(?=:)")
_EVENT = re.compile(r"\[[^\]]*[^:\]]\]")
_TURNS = re.compile(f"({SPEAKER.pattern})")
_LONE_SPEAKER = re.compile(rf"\s*{SPEAKER.pattern}\s*")
_BRACKETS = re.compile(r"(\[[^\]]*\])")
_PUNCTUATION = re.compile(r"[,;.!?…]|: ")
_BLANKS = re.compile(r"  [\t ]*| ?\t[\t ]*")
"""All but a single space, which would be replaced by itself."""
_BLANK_BEFORE_STOP = re.compile(r"(?<=\w) (?=[.,])")
_BLANK_LINES = re.compile(r"\s+\n")
_MOST_DRAWS = 100


@dataclass(frozen=True)
class Wording:
    """The words of a language for what the tags name.

    Attributes:
        speaker: A speaker without a name, who gets a number: "Speaker".
        events: The events that may be kept, by their name in the data.
        first_names: Names for speakers and for `[PII]`.
        last_names: Family names for speakers.
    """

    speaker: str
    events: Mapping[str, str]
    first_names: tuple[str, ...]
    last_names: tuple[str, ...]

    def numbered(self, number: int) -> str:
        """The tag of a speaker without a name."""
        return f"[{self.speaker} {number}:]"


def normalised(text: str, wording: Wording, random: Random, *, keep_events: bool) -> str:
    """A dialogue with uniform tags, without empty turns and superfluous blanks.

    Args:
        text: The dialogue.
        wording: Words for numbered speakers and events.
        random: Draws the name that replaces `[PII]` if events are not kept.
        keep_events: Keep the events that `wording` knows; otherwise all are removed.
    """
    removed = {REMOVED_NAME, REMOVED_NAME.lower(), wording.events.get(REMOVED_NAME, REMOVED_NAME), "Nom", "nom"}

    def tag(match: re.Match[str]) -> str:
        content = match[1]
        if len(content) > 1 and content.endswith(":"):
            numbered = _NUMBERED.match(content)
            return wording.numbered(int(numbered[1])) if numbered else f"[{capitalised(content[:-1])}:]"
        if keep_events:
            return f"[{wording.events[content]}]" if content in wording.events else ""
        return random.choice(wording.first_names) if content in removed else ""

    return _collapsed(_without_empty_turns(_TAG.sub(tag, text)))


def capitalised(name: str) -> str:
    """A name with capitals: `jean-claude D'ESTAING JR` becomes `Jean-Claude D'ESTAING JR`."""
    words = [word if word.isupper() and len(word) <= 2 else word.capitalize() for word in name.split(" ")]
    for place, word in enumerate(words):
        for mark in "-'":
            if mark in word:
                parts = word.split(mark)
                words[place] = mark.join(part if part.isupper() else part.capitalize() for part in parts)
    return " ".join(words)


def speakers(text: str) -> list[str]:
    """The tags of the speakers, each once, in the order in which they begin to speak."""
    return list(dict.fromkeys(SPEAKER.findall(text)))


def has_names(text: str) -> bool:
    """Whether a speaker of a dialogue, as it is in the data, has a name."""
    return any(not _NUMBERED.match(tag, 1) for tag in speakers(text))


def has_capitals(text: str) -> bool:
    """Whether lower case would change the text outside its tags."""
    return any(part != part.lower() for part in _BRACKETS.split(text)[::2])


def has_punctuation(text: str) -> bool:
    return bool(_PUNCTUATION.search(text))


def has_events(text: str) -> bool:
    return bool(_EVENT.search(text))


def with_numbers(text: str, wording: Wording) -> str:
    """Replace all names of speakers by numbers."""
    tags = {tag: wording.numbered(number) for number, tag in enumerate(speakers(text), start=1)}
    return SPEAKER.sub(lambda match: tags[match[0]], text)


def with_names(text: str, wording: Wording, random: Random) -> str:
    """Give every speaker a name of its own: with even chances all of them first names, or full names."""
    firsts, lasts = wording.first_names, wording.last_names
    draw: Callable[[], str] = (
        (lambda: f"[{random.choice(firsts)}:]")
        if random.random() < 0.5
        else (lambda: f"[{random.choice(firsts)} {random.choice(lasts)}:]")
    )
    tags: dict[str, str] = {}
    for tag in speakers(text):
        names = (draw() for _ in range(_MOST_DRAWS))
        # with more speakers than names, the last ones keep their numbers
        tags[tag] = next((name for name in names if name not in tags.values()), tag)
    return SPEAKER.sub(lambda match: tags[match[0]], text)


def with_dashes(text: str) -> str:
    """Replace the tags of speakers by dashes."""
    return SPEAKER.sub("-", text)


def as_monologue(text: str) -> str:
    """Remove the tags of speakers."""
    return _LONE_SPEAKER.sub("", text)


def in_lower_case(text: str) -> str:
    """The text in lower case, without changes to its tags."""
    return "".join(part if place % 2 else part.lower() for place, part in enumerate(_BRACKETS.split(text)))


def without_punctuation(text: str) -> str:
    return _collapsed(_PUNCTUATION.sub("", text))


def _without_empty_turns(text: str) -> str:
    """Remove turns without a letter, and join the turns of one speaker between which one was removed."""
    before, *turns = _TURNS.split(text)
    tags, bodies = turns[::2], turns[1::2]
    while any(not _has_letter(body) for body in bodies[:-1]):
        tags, bodies = _emptied(tags, bodies)
        tags, bodies = _joined(tags, bodies)
    return before + "".join(tag + body for tag, body in zip(tags, bodies, strict=True))


def _emptied(tags: list[str], bodies: list[str]) -> tuple[list[str], list[str]]:
    kept = []
    place, last = 0, len(tags) - 1
    while place <= last:
        if place < last and not _has_letter(bodies[place]):
            place += 1  # the turn after an empty one is looked at in the next pass
        kept.append(place)
        place += 1
    return [tags[n] for n in kept], [bodies[n] for n in kept]


def _joined(tags: list[str], bodies: list[str]) -> tuple[list[str], list[str]]:
    new_tags, new_bodies = [], []
    place, last = 0, len(tags) - 1
    while place <= last:
        tag, body = tags[place], bodies[place]
        own = body[1:]
        if place < last and tag == tags[place + 1] and body[:1] == " " and own[-1:].isspace() and "[" not in own:
            place += 1
            body = f" {own[:-1]}{bodies[place]}"
        new_tags.append(tag)
        new_bodies.append(body)
        place += 1
    return new_tags, new_bodies


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def _collapsed(text: str) -> str:
    text = _BLANK_BEFORE_STOP.sub("", _BLANKS.sub(" ", text))
    return _BLANK_LINES.sub("\n", text).strip()
