"""`truncate`: truncate examples that are too long instead of dropping them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, num_tokens
from onmt_llm.data.transforms.filters import TGT_SPECIALS
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.data.transforms.windows import head, rounds, tail
from onmt_llm.text.segment import Segment

Keep = Literal["head", "tail", "turns"]
KeptLength = Annotated[int, Field(ge=4, le=10**7)]


class TruncateConfig(Section):
    """Options of `truncate`: shorten long examples."""

    truncate_length: KeptLength = 2048
    """Maximum length of the source in tokens; for a language model, of the whole example (prompt and answer) with BOS
    and EOS."""
    truncate_tgt_length: KeptLength | None = None
    """Maximum length of the target in tokens, including BOS and EOS; null = `truncate_length`."""
    truncate_keep: Keep = "head"
    """Part of a long example to keep: its start (`head`), its end (`tail`), or, in conversations, as many complete
    rounds of prompt and answer from the start as fit (`turns`)."""


@TRANSFORMS.register("truncate")
class Truncate(Transform[TruncateConfig]):
    """Truncates and counts long examples. A text whose end is cut off gets no EOS.

    A conversation whose first round is too long is dropped and counted as `round_too_long`.

    Args:
        max_src: Maximum tokens on the source side, or in the whole example with `joint`.
        max_tgt: Maximum tokens on the target side.
        keep: Part to keep.
        joint: Source and target are counted together (a language model).
    """

    section = "truncate"
    Config = TruncateConfig
    rewrites = True
    counts_tokens = True
    needs_tokens = True

    def __init__(self, *, max_src: int, max_tgt: int, keep: Keep, joint: bool) -> None:
        super().__init__()
        self.max_src = max_src
        self.max_tgt = max_tgt
        self.keep = keep
        self.joint = joint

    @classmethod
    def build(cls, config: TruncateConfig, corpus: CorpusConfig, context: TransformContext) -> Truncate:
        joint = context.codec.task == "lm"
        specials = 1 + context.codec.config.specials.add_bos if joint else 0
        max_tgt = config.truncate_tgt_length or config.truncate_length
        max_src = config.truncate_length - specials
        return cls(max_src=max_src, max_tgt=max_tgt - TGT_SPECIALS, keep=config.truncate_keep, joint=joint)

    def __call__(self, example: Example) -> Example | None:
        if self.joint:
            return self._cut_text(example)
        src, tgt = num_tokens(example.src) > self.max_src, num_tokens(example.tgt) > self.max_tgt
        part = tail if self.keep == "tail" else head
        if src:
            example.src = part(example.src, self.max_src)
        if tgt:
            example.tgt = part(example.tgt, self.max_tgt)
            example.closed = example.closed or part is head
        self.truncated += src or tgt
        return example

    def _cut_text(self, example: Example) -> Example | None:
        segments = [*example.src, *example.tgt]
        if num_tokens(segments) <= self.max_src:
            return example
        if self.keep == "turns":
            kept = _whole_rounds(segments, self.max_src)
        else:
            kept = (tail if self.keep == "tail" else head)(segments, self.max_src)
            example.closed = example.closed or self.keep == "head"
        if not kept:
            self.dropped["round_too_long"] += 1
            return None
        example.src, example.tgt = kept, []
        self.truncated += 1
        return example


def _whole_rounds(segments: list[Segment], length: int) -> list[Segment]:
    kept: list[Segment] = []
    for unit in rounds(segments):
        if num_tokens(kept) + num_tokens(unit) > length:
            break
        kept += unit
    return kept
