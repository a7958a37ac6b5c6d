"""Preferences: a prompt with a chosen and a rejected answer (DPO, ORPO), or one answer with a label (KTO).

A pair is one example with another one as its `rejected`; a KTO example has none. Both set `chosen`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onmt_llm.data.example import IGNORED, Encoded, Example
from onmt_llm.data.parsing.json_object import kind
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.message import Message

OTHER_DROPPED = "other_answer_dropped"


@dataclass(frozen=True)
class PreferencePrompt:
    """Prompt and answers of a JSON object; texts and turns are not validated yet.

    Attributes:
        prompt: Text or turns.
        answers: Text or turns of each answer, and whether it is the chosen (or a desirable) one; the chosen one first.
    """

    prompt: Any
    answers: list[tuple[Any, bool]]


def parse_preference(item: Mapping[str, Any], *, prompts: Sequence[str], turns: Sequence[str]) -> PreferencePrompt:
    """The prompt and answers of an object: `prompt` with `chosen` and `rejected`, or with `completion` and
    `label`; the prompt may be a conversation, or be the turns that both answers begin with.

    Args:
        item: The object.
        prompts: Keys that a prompt may have.
        turns: Keys that a conversation may have.

    Raises:
        ValueError: It has another shape; the message continues "... must have".
    """
    prompt = next((item[key] for key in (*prompts, *turns) if key in item), None)
    if "chosen" in item and "rejected" in item:
        chosen, rejected = item["chosen"], item["rejected"]
        if prompt is None:
            prompt, chosen, rejected = _shared(chosen, rejected)
        return PreferencePrompt(prompt, [(chosen, True), (rejected, False)])
    if "label" not in item:
        known = f"'{prompts[0]}' with 'chosen' and 'rejected', or with 'completion' and 'label'"
        raise ValueError(f"{known}, but has {', '.join(sorted(item)) or 'no keys'}")
    label = item["label"]
    if label not in (True, False, 0, 1):
        raise ValueError(f"true or false as its 'label', but has {label if isinstance(label, int) else kind(label)}")
    if "completion" in item and prompt is not None:
        return PreferencePrompt(prompt, [(item["completion"], bool(label))])
    if isinstance(prompt, list) and len(prompt) > 1:
        return PreferencePrompt(prompt[:-1], [(prompt[-1:], bool(label))])
    raise ValueError("a prompt and a 'completion' with its 'label', or a conversation that ends with the answer")


def _shared(chosen: Any, rejected: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The turns that two conversations share at the start, and the rest of each."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise ValueError("a prompt, or whole conversations as 'chosen' and 'rejected'")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise ValueError("'chosen' and 'rejected' that begin with the same turns")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def parted(prompt: list[Message], answer: list[Message]) -> tuple[list[Message], list[Message]]:
    """A prompt and its answer, where the answer may be the whole conversation with the prompt.

    Raises:
        ValueError: The answer begins with another question; the message continues "... must have".
    """
    if not answer or answer[0].role not in ("system", "user"):
        return prompt, answer
    asked, said = ([(each.role, each.content.strip()) for each in turns] for turns in (prompt, answer))
    end = said.index(asked[0]) + 1 if len(asked) == 1 and asked[0] in said else len(asked)
    if said[max(end - len(asked), 0) : end] != asked:
        raise ValueError(
            "a turn of the assistant first in an answer, or the whole conversation with its prompt, but has one of the "
            f"{answer[0].role} that is not in the prompt"
        )
    return answer[:end], answer[end:]


def train_last(segments: Sequence[Segment], *, turns: int) -> int:
    """Train only the last `turns` turns; a turn is a run of trained segments. Returns how many there are."""
    inside, found = False, 0
    for segment in reversed(segments):
        found += segment.train_on and not inside
        inside = segment.train_on
        segment.train_on = inside and found <= turns
    return min(found, turns)


def split_answers(examples: Sequence[Example], *, paired: bool) -> list[Example]:
    """All answers as separate examples, to be transformed independently; pairs are numbered if `paired`."""
    found = []
    for number, example in enumerate(examples):
        other, example.rejected = example.rejected, None
        for each in (example, other) if other is not None else (example,):
            each.pair = number if paired and other is not None else None
            found.append(each)
    return found


def join_pairs(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """Join numbered answers into pairs, at the position of the chosen one; also returns how many had no partner."""
    sides: dict[int, dict[bool, Example]] = {}
    for example in examples:
        if example.pair is not None:
            sides.setdefault(example.pair, {})[bool(example.chosen)] = example
    kept, alone = [], 0
    for example in examples:
        if example.pair is None:
            kept.append(example)
        elif len(sides[example.pair]) < 2:
            alone += 1
        elif example.chosen:
            example.rejected = sides[example.pair][False]
            kept.append(example)
    return kept, alone


def preference_rows(examples: Sequence[Encoded]) -> tuple[list[Encoded], list[int]]:
    """The rows of a batch of preferences, and the kind of each: 1 = chosen, 0 = rejected, -1 = of another prompt.

    Pairs: all chosen answers, then all rejected ones in the same order. Single answers (KTO): all of them, then each
    prompt again with the answer to the previous prompt, to estimate the divergence from the reference.
    """
    others = [example.rejected for example in examples if example.rejected is not None]
    if others:
        return [*examples, *others], [1] * len(examples) + [0] * len(others)
    mismatched = [answered_by(example, examples[number - 1]) for number, example in enumerate(examples)]
    return [*examples, *mismatched], [int(bool(example.chosen)) for example in examples] + [-1] * len(mismatched)


def answered_by(prompt: Encoded, answer: Encoded) -> Encoded:
    """The prompt of one example with the answer of another."""
    begin, end = (int(np.argmax(example.labels != IGNORED)) for example in (prompt, answer))
    # the input at the first trained position is the last token of the prompt
    return replace(
        prompt,
        tgt=np.concatenate([prompt.tgt[: begin + 1], answer.tgt[end + 1 :]]),
        labels=np.concatenate([prompt.labels[:begin], answer.labels[end:]]),
        align=None,
        trained=None,
        rejected=None,
    )
