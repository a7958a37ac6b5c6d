"""The instruction corpus of `training.py`: real text, mixed lengths, the same token ids for every program.

An example asks to continue a passage; the answer is the text that follows. Its length is drawn from a log-normal
distribution with a mean of about 200 tokens, cut off at 512, and the answer is half of it. The model's own tokeniser
and chat template, run by transformers, define the ids and the trained positions.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEAN = 200
LONGEST = 512
SHORTEST = 72
SPREAD = 0.6  # standard deviation of the logarithm of the length
IGNORED = -100
REQUEST = "Continue this text in the style and in the language in which it is written."
# tokens that the split between passage and answer may add to the drawn length
_MARGIN = 4


@dataclass(frozen=True)
class Example:
    """An example as text and as ids.

    Attributes:
        prompt: Request and passage.
        answer: The text that follows.
        ids: The conversation in the model's template, up to the token that ends the answer.
        labels: The same, with -100 at positions that are not trained.
    """

    prompt: str
    answer: str
    ids: list[int]
    labels: list[int]


def examples(texts: Sequence[Path], number: int, tokenizer: Any, *, seed: int = 1) -> Iterator[Example]:
    """The given number of examples, alternately from the texts, each in order; deterministic for a seed.

    Args:
        texts: Files of plain text.
        number: Number of examples.
        tokenizer: transformers' tokeniser of the model, with its chat template.
        seed: Seed of the lengths.

    Raises:
        ValueError: The texts are too short.
    """
    rng = random.Random(seed)
    streams = [_words(text, tokenizer) for text in texts]
    frame = len(_conversation(tokenizer, f"{REQUEST}\n\n", "").ids)
    for place in range(number):
        length = _draw(rng)
        asked = max(length - length // 2 - frame, 8)
        stream = streams[place % len(streams)]
        try:
            passage, answer = _take(stream, asked), _take(stream, length - frame - asked)
        except StopIteration:
            raise ValueError(f"{texts[place % len(texts)]} must be longer for {number} examples") from None
        example = _conversation(tokenizer, f"{REQUEST}\n\n{passage}", answer)
        assert len(example.ids) <= LONGEST, len(example.ids)
        yield example


def write(found: Sequence[Example], path: Path) -> None:
    """`path`.jsonl with prompts and answers, `path`.ids.jsonl with ids and labels."""
    with path.with_suffix(".jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"prompt": one.prompt, "answer": one.answer}) + "\n" for one in found)
    with path.with_suffix(".ids.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"input_ids": one.ids, "labels": one.labels}) + "\n" for one in found)


def _draw(rng: random.Random) -> int:
    length = rng.lognormvariate(math.log(MEAN) - SPREAD**2 / 2, SPREAD)
    return min(max(round(length), SHORTEST), LONGEST - _MARGIN)


def _words(text: Path, tokenizer: Any) -> Iterator[tuple[str, int]]:
    """The words of a text, and the number of tokens of each."""
    with text.open(encoding="utf-8") as file:
        for line in file:
            if words := line.split():
                ids = tokenizer([f" {word}" for word in words])["input_ids"]
                yield from zip(words, map(len, ids), strict=True)


def _take(words: Iterator[tuple[str, int]], tokens: int) -> str:
    """The next words, up to a number of tokens, but at least one."""
    word, taken = next(words)
    found = [word]
    while taken < tokens:
        word, length = next(words)
        if taken + length > tokens:
            break
        found.append(word)
        taken += length
    return " ".join(found)


def _conversation(tokenizer: Any, prompt: str, answer: str) -> Example:
    user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template([user, assistant], return_dict=False)
    while ids[-1] != tokenizer.eos_token_id:  # the line break after the end of the answer
        ids.pop()
    assert ids[: len(asked)] == asked
    return Example(prompt, answer, ids, [IGNORED] * len(asked) + ids[len(asked) :])
