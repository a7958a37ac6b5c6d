"""Filters: `filtertoolong`, `filtertooshort`."""

from __future__ import annotations

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Count, CountOrZero
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, num_tokens
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext

TGT_SPECIALS = 2  # BOS and EOS count towards tgt_seq_length, as in OpenNMT-py


class FilterTooLongConfig(Section):
    """Options of `filtertoolong`: drop long examples."""

    src_seq_length: Count = 192
    """Maximum length of the source in tokens; for a language model, of the whole example (prompt and answer) with BOS
    and EOS."""
    tgt_seq_length: Count = 192
    """Maximum length of the target in tokens, including BOS and EOS."""


@TRANSFORMS.register("filtertoolong")
class FilterTooLong(Transform[FilterTooLongConfig]):
    """Drops examples with too many tokens (words, if listed before the tokeniser).

    Args:
        max_src: Maximum tokens on the source side, or in the whole example with `joint`.
        max_tgt: Maximum tokens on the target side.
        joint: Source and target are counted together (a language model).
    """

    section = "filtertoolong"
    Config = FilterTooLongConfig
    counts_tokens = True

    def __init__(self, *, max_src: int, max_tgt: int, joint: bool) -> None:
        super().__init__()
        self.max_src = max_src
        self.max_tgt = max_tgt
        self.joint = joint

    @classmethod
    def build(cls, config: FilterTooLongConfig, corpus: CorpusConfig, context: TransformContext) -> FilterTooLong:
        joint = context.codec.task == "lm"
        specials = 1 + context.codec.config.specials.add_bos if joint else 0
        return cls(max_src=config.src_seq_length - specials, max_tgt=config.tgt_seq_length - TGT_SPECIALS, joint=joint)

    def __call__(self, example: Example) -> Example | None:
        src, tgt = num_tokens(example.src), num_tokens(example.tgt)
        if self.joint:
            src, tgt = src + tgt, 0
        if src > self.max_src:
            self.dropped["too_long" if self.joint else "src_too_long"] += 1
            return None
        if tgt > self.max_tgt and not self.joint:
            self.dropped["tgt_too_long"] += 1
            return None
        return example


class FilterTooShortConfig(Section):
    """Options of `filtertooshort`: drop short examples."""

    src_seq_length_min: CountOrZero = 1
    """Minimum length of the source in tokens; for a language model, of the whole example (prompt and answer)."""
    tgt_seq_length_min: CountOrZero = 1
    """Minimum length of the target in tokens, not counting BOS and EOS."""


@TRANSFORMS.register("filtertooshort")
class FilterTooShort(Transform[FilterTooShortConfig]):
    """Drops examples with too few tokens (words, if listed before the tokeniser).

    Args:
        min_src: Minimum tokens on the source side, or in the whole example with `joint`.
        min_tgt: Minimum tokens on the target side.
        joint: Source and target are counted together (a language model).
    """

    section = "filtertooshort"
    Config = FilterTooShortConfig
    counts_tokens = True

    def __init__(self, *, min_src: int, min_tgt: int, joint: bool) -> None:
        super().__init__()
        self.min_src = min_src
        self.min_tgt = min_tgt
        self.joint = joint

    @classmethod
    def build(cls, config: FilterTooShortConfig, corpus: CorpusConfig, context: TransformContext) -> FilterTooShort:
        minima = config.src_seq_length_min, config.tgt_seq_length_min
        return cls(min_src=minima[0], min_tgt=minima[1], joint=context.codec.task == "lm")

    def __call__(self, example: Example) -> Example | None:
        src, tgt = num_tokens(example.src), num_tokens(example.tgt)
        if self.joint:
            reason = "too_short" if src + tgt < self.min_src else None
        else:
            reason = "src_too_short" if src < self.min_src else "tgt_too_short" if tgt < self.min_tgt else None
        if reason is None:
            return example
        self.dropped[reason] += 1
        return None
