"""Prompts from input lines, and output lines from answers, through the transforms that apply at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.transforms.transform import Transform
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.text.codec import Codec
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.segment import Segment

Answers = Sequence[Sequence[Hypothesis]]
"""The hypotheses of each prompt, or of each line."""


@dataclass(frozen=True)
class LinePrompt:
    """One prompt.

    Attributes:
        lines: Places of its lines; more than one if `docify` has joined them.
        tokens: The prompt; empty for an empty line.
    """

    lines: list[int]
    tokens: list[str]


class LinePrompts:
    """The prompts of a file of input lines.

    Args:
        lines: The input.
        text: Transforms of text, in order.
        tokens: Transforms of tokens, in order.
        encode: Tokenises a text.
        codec: Has the frame of a prompt, which transforms of tokens do not see.
        first: Place of the first line in the whole input.
        target_prefix: Tokens that the transforms put before each target.
    """

    def __init__(
        self,
        lines: Sequence[str],
        *,
        text: Sequence[Transform],
        tokens: Sequence[Transform],
        encode: Callable[[str], list[str]],
        codec: Codec,
        first: int = 0,
        target_prefix: Sequence[str] = (),
    ) -> None:
        self.target_prefix = target_prefix
        self._lines = lines
        self._first = first
        self._text = text
        self._tokens = tokens
        self._encode = encode
        self._codec = codec
        full = [place for place, line in enumerate(lines) if line.strip()]
        empty = [LinePrompt([place], []) for place in range(len(lines)) if not lines[place].strip()]
        self._prompts = sorted([*self._build(full), *empty], key=lambda prompt: prompt.lines[0])

    @property
    def prompts(self) -> list[list[str]]:
        """Tokens of each prompt, in the order of the lines."""
        return [prompt.tokens for prompt in self._prompts]

    @property
    def places(self) -> list[int]:
        """Place of the first line of each prompt in the whole input."""
        return [self._first + prompt.lines[0] for prompt in self._prompts]

    @property
    def joins_lines(self) -> bool:
        """Whether a prompt may have several lines."""
        return any(transform.needs_neighbours for transform in (*self._text, *self._tokens))

    def by_line(
        self, answers: Answers, generate: Callable[[list[list[str]], list[int]], Answers]
    ) -> list[list[Hypothesis]]:
        """The answers to each line, with the transforms undone.

        If an answer to joined lines has another number of lines, these are answered again one by one.

        Args:
            answers: The answers to `prompts`.
            generate: Answers further prompts, given their places in the whole input.
        """
        found: list[list[Hypothesis]] = [[] for _ in self._lines]
        alone: list[int] = []
        for prompt, hypotheses in zip(self._prompts, answers, strict=True):
            parts = [self._parts(hypothesis, len(prompt.lines)) for hypothesis in hypotheses]
            if any(len(part) != len(prompt.lines) for part in parts):
                alone += prompt.lines
                continue
            for part in parts:
                for place, hypothesis in zip(prompt.lines, part, strict=True):
                    found[place].append(hypothesis)
        again = [prompt for place in alone for prompt in self._build([place])]
        places = [self._first + prompt.lines[0] for prompt in again]
        answered = generate([prompt.tokens for prompt in again], places) if again else []
        for prompt, hypotheses in zip(again, answered, strict=True):
            found[prompt.lines[0]] = [self._parts(hypothesis, 1)[0] for hypothesis in hypotheses]
        return found

    def _build(self, places: Sequence[int]) -> list[LinePrompt]:
        examples = [Example([Segment(from_line(self._lines[place]))], line=place) for place in places]
        for transform in self._text:
            examples = transform.batch(examples)
        if self._tokens:
            for example in examples:
                example.src = [Segment(tokens=self._codec.unframed(self._encode(_text(example))))]
            for transform in self._tokens:
                examples = transform.batch(examples)
        ends = [*(example.line for example in examples[1:]), len(self._lines)]
        prompts = []
        for example, end in zip(examples, ends, strict=False):
            tokens = self._codec.framed(side_tokens(example.src)) if self._tokens else self._encode(_text(example))
            prompts.append(LinePrompt([place for place in places if example.line <= place < end], tokens))
        return prompts

    def _parts(self, hypothesis: Hypothesis, lines: int) -> list[Hypothesis]:
        """A hypothesis per line, with the transforms undone; an answer to one line stays whole."""
        text = hypothesis.text
        for transform in reversed([*self._text, *self._tokens]):
            undone = transform.undo(text)
            text = undone if isinstance(undone, str) else " ".join(undone)
        if lines == 1:
            return [replace(hypothesis, text=text)]
        return [replace(hypothesis, text=part.strip(" ")) for part in text.split("\n")]


def _text(example: Example) -> str:
    return "".join(segment.text or "" for segment in example.src)
