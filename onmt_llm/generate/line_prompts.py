"""Input lines to prompts and answers back to lines, through the transforms that act at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.transforms import Transform
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.segment import Segment

Answers = Sequence[Sequence[Hypothesis]]
"""The hypotheses of each prompt, or of each line."""


@dataclass(frozen=True)
class LinePrompt:
    """What the model is asked at once.

    Attributes:
        lines: Places of the lines that it is made of; more than one, where `docify` has joined them.
        tokens: The prompt; empty for an empty line.
    """

    lines: list[int]
    tokens: list[str]


class LinePrompts:
    """The questions of a file of input lines.

    Args:
        lines: The input.
        text: Transforms of text, in order.
        tokens: Transforms of tokens, in order.
        encode: Tokens of a text.
        bos: A token at the start of a prompt that transforms of tokens leave where it is.
    """

    def __init__(
        self,
        lines: Sequence[str],
        *,
        text: Sequence[Transform],
        tokens: Sequence[Transform],
        encode: Callable[[str], list[str]],
        bos: str | None = None,
    ) -> None:
        self._lines = lines
        self._text = text
        self._tokens = tokens
        self._encode = encode
        self._bos = bos
        full = [place for place, line in enumerate(lines) if line.strip()]
        empty = [LinePrompt([place], []) for place in range(len(lines)) if not lines[place].strip()]
        self._questions = sorted([*self._ask(full), *empty], key=lambda question: question.lines[0])

    @property
    def prompts(self) -> list[list[str]]:
        """Tokens of each question, in the order of the lines."""
        return [question.tokens for question in self._questions]

    def by_line(self, answers: Answers, generate: Callable[[list[list[str]]], Answers]) -> list[list[Hypothesis]]:
        """The answers to each line, with the transforms undone.

        Lines that were asked together are asked again one by one, if an answer to them has another number of lines.

        Args:
            answers: Those to `prompts`.
            generate: Answers to other prompts.
        """
        found: list[list[Hypothesis]] = [[] for _ in self._lines]
        alone: list[int] = []
        for question, hypotheses in zip(self._questions, answers, strict=True):
            parts = [self._parts(hypothesis, len(question.lines)) for hypothesis in hypotheses]
            if any(len(part) != len(question.lines) for part in parts):
                alone += question.lines
                continue
            for part in parts:
                for place, hypothesis in zip(question.lines, part, strict=True):
                    found[place].append(hypothesis)
        again = [question for place in alone for question in self._ask([place])]
        for question, hypotheses in zip(again, generate([q.tokens for q in again]) if again else [], strict=True):
            found[question.lines[0]] = [self._parts(hypothesis, 1)[0] for hypothesis in hypotheses]
        return found

    def _ask(self, places: Sequence[int]) -> list[LinePrompt]:
        examples = [Example([Segment(from_line(self._lines[place]))], line=place) for place in places]
        for transform in self._text:
            examples = transform.batch(examples)
        if self._tokens:
            for example in examples:
                example.src = [Segment(tokens=self._without_bos(self._encode(_text(example))))]
            for transform in self._tokens:
                examples = transform.batch(examples)
        ends = [*(example.line for example in examples[1:]), len(self._lines)]
        questions = []
        for example, end in zip(examples, ends, strict=False):
            tokens = self._with_bos(side_tokens(example.src)) if self._tokens else self._encode(_text(example))
            questions.append(LinePrompt([place for place in places if example.line <= place < end], tokens))
        return questions

    def _without_bos(self, tokens: list[str]) -> list[str]:
        return tokens[1:] if self._bos is not None and tokens[:1] == [self._bos] else tokens

    def _with_bos(self, tokens: list[str]) -> list[str]:
        return tokens if self._bos is None else [self._bos, *tokens]

    def _parts(self, hypothesis: Hypothesis, lines: int) -> list[Hypothesis]:
        """A hypothesis for each line of an answer to several lines; the answer itself, where it is to one."""
        text = hypothesis.text
        for transform in reversed([*self._text, *self._tokens]):
            undone = transform.undo(text)
            text = undone if isinstance(undone, str) else " ".join(undone)
        if lines == 1:
            return [replace(hypothesis, text=text)]
        return [replace(hypothesis, text=part.strip(" ")) for part in text.split("\n")]


def _text(example: Example) -> str:
    return "".join(segment.text or "" for segment in example.src)
