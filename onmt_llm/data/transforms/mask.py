"""`insert_mask_before_placeholder`: separate prompts from answers at headings.

In an instruction corpus of one text per line, prompt and answer are a single text. This transform splits it at headings
such as `### Response:`, for any number of rounds, so that with `zero_out_prompt_loss` only the answers are trained.
Without that option the text is split in the same way, but all of it is trained.

An example without a heading is dropped and counted as `no_response_pattern`: without a mask it would be trained whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.segment import Segment


class MaskConfig(Section):
    """Options of `insert_mask_before_placeholder`: find the answers in plain text, for the loss mask."""

    response_patterns: list[str] = Field(
        default_factory=lambda: ["Response : ｟newline｠", "### Response:｟newline｠"], min_length=1
    )
    """Texts that precede an answer; the defaults are OpenNMT-py's and that of the Alpaca and Vicuna layout."""
    instruction_patterns: list[str] = Field(default_factory=lambda: ["### Instruction:"])
    """Texts that end an answer, because the next turn starts."""


@TRANSFORMS.register("insert_mask_before_placeholder")
class InsertMask(Transform[MaskConfig]):
    """Splits a text into prompts and answers.

    Examples that arrive in several segments (rendered conversations, pairs, lines with a literal `｟_mask_before_｠`)
    are not changed.

    Args:
        responses: Headings that precede answers; a heading belongs to the prompt.
        instructions: Headings that start the next prompt.
        train_prompts: Whether prompts are trained.
    """

    section = "insert_mask_before_placeholder"
    Config = MaskConfig
    needs_text = True

    def __init__(self, *, responses: Sequence[str], instructions: Sequence[str], train_prompts: bool) -> None:
        super().__init__()
        self.train_prompts = train_prompts
        self._headings = re.compile(f"(?P<response>{_any_of(responses)})|(?P<instruction>{_any_of(instructions)})")

    @classmethod
    def build(cls, config: MaskConfig, corpus: CorpusConfig, context: TransformContext) -> InsertMask:
        return cls(
            responses=config.response_patterns,
            instructions=config.instruction_patterns,
            train_prompts=not context.zero_out_prompt_loss,
        )

    def __call__(self, example: Example) -> Example | None:
        if len(example.src) + len(example.tgt) != 1:
            return example
        segments = self._cut(example.src[0].text or "")
        if not segments:
            self.dropped["no_response_pattern"] += 1
            return None
        example.src = segments
        return example

    def _cut(self, text: str) -> list[Segment]:
        """Alternating prompts and answers; empty if there is no answer heading."""
        segments: list[Segment] = []
        prompt, answer = 0, -1  # start of the current prompt and of the current answer; -1 = not in an answer
        for heading in self._headings.finditer(text):
            if answer >= 0:
                # line breaks before the next heading are layout, not part of the answer
                prompt = answer + len(text[answer : heading.start()].rstrip("\n"))
                segments.append(Segment(text[answer:prompt]))
                answer = -1
            if heading["response"]:
                answer = heading.end()
                segments.append(self._prompt(text[prompt:answer], segments))
        if segments and answer < 0:
            segments.append(self._prompt(text[prompt:], segments))
        elif segments:
            segments.append(Segment(text[answer:]))
        return [segment for segment in segments if segment.text]

    def _prompt(self, text: str, before: list[Segment]) -> Segment:
        return Segment(text, train_on=self.train_prompts, starts_round=bool(before))


def _any_of(patterns: Sequence[str]) -> str:
    """A regular expression for any of these texts, the longest first; without texts, it matches nothing."""
    return "|".join(sorted((re.escape(from_line(pattern)) for pattern in patterns), key=len, reverse=True)) or "(?!)"
