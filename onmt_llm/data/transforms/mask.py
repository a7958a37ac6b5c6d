"""`insert_mask_before_placeholder`: separate prompts from answers by the headings between them.

An instruction corpus of one text a line holds prompt and answer in one piece. This transform cuts it into segments at
headings such as `### Response:`, in conversations of any number of rounds, so that with `zero_out_prompt_loss` the loss
counts the answers alone. Without that option it cuts in the same places and everything stays trained.

An example without any heading is dropped and counted as `no_response_pattern`: training it in full would undo the mask.
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
    """Cuts a text into prompts and answers.

    Examples that arrive in several segments (rendered conversations, pairs, lines with a literal `｟_mask_before_｠`)
    are left as they are.

    Args:
        responses: Headings of answers; a heading belongs to the prompt.
        instructions: Headings of the next prompt.
        train_prompts: Whether the loss counts prompts.
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
        """Prompts and answers in turn; empty where there is no heading of an answer."""
        segments: list[Segment] = []
        prompt, answer = 0, -1  # where the present prompt and the present answer begin; -1 = we are not in an answer
        for heading in self._headings.finditer(text):
            if answer >= 0:
                # the line breaks before the next heading are layout, not answer
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
    """A regular expression for any of these texts, the longest first; one that matches nothing where there are none."""
    return "|".join(sorted((re.escape(from_line(pattern)) for pattern in patterns), key=len, reverse=True)) or "(?!)"
