"""`fuzzymatch`: append the translation of a similar sentence, from a translation memory, to the source.

Neural fuzzy repair (Bulte and Tezcan 2019, https://aclanthology.org/P19-1175). In training, a fraction of the corpus
gets a match; in validation and at inference, every source that has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Count, Fraction, LengthOrZero
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.augment import Augment, read_pairs, set_source, source_text
from onmt_llm.data.transforms.transform import TRANSFORMS, TransformContext
from onmt_llm.optional import require

_EXACT = 100
_CELLS = 1 << 24  # maximum number of scores in memory


class FuzzyMatchConfig(Section):
    """Options of `fuzzymatch`: add a similar translation from a translation memory. Needs the package rapidfuzz."""

    tm_path: str | None = None
    """Translation memory: lines `source<TAB>target`."""
    fuzzy_corpus_ratio: Fraction = 0.1
    """Training: fraction of examples that get a match; outside training, all that have one do."""
    fuzzy_threshold: Annotated[float, Field(ge=0, le=100)] = 70
    """Minimum similarity of a source and its match, in percent; equal sentences do not match."""
    tm_delimiter: str = Field("\t", min_length=1)
    """Column delimiter of `tm_path`."""
    fuzzy_token: str = Field("｟fuzzy｠", min_length=1)
    """Token between a source and its match."""
    fuzzymatch_min_length: LengthOrZero = 4
    """Minimum length of sentences to match, and of those in the memory, in characters."""
    fuzzymatch_max_length: Count = 70
    """Maximum length of sentences to match, and of those in the memory, in characters."""


@TRANSFORMS.register("fuzzymatch")
class FuzzyMatch(Augment[FuzzyMatchConfig]):
    """Appends `fuzzy_token` and the target of the most similar sentence in the memory to the source.

    Args:
        memory: Sentence pairs.
        threshold: Minimum similarity in percent.
        token: Token between a source and its match.
        lengths: Minimum and maximum sentence length, in characters.
        ratio: Fraction of the examples.
        training: Whether this is training.
    """

    section = "fuzzymatch"
    Config = FuzzyMatchConfig
    at_inference = True

    def __init__(
        self,
        memory: Sequence[tuple[str, str]],
        *,
        threshold: float,
        token: str,
        lengths: tuple[int, int],
        ratio: float,
        training: bool,
    ) -> None:
        super().__init__(ratio=ratio, training=training)
        self._lengths = lengths
        pairs = [pair for pair in memory if self._fits(pair[0])]
        self._sources = [source for source, _ in pairs]
        self._targets = [target for _, target in pairs]
        self._threshold = threshold
        self._token = token
        self._process = require("rapidfuzz.process", "transform fuzzymatch", "rapidfuzz")
        self._ratio = require("rapidfuzz.fuzz", "transform fuzzymatch", "rapidfuzz").ratio
        self.group_size = max(1, _CELLS // max(len(pairs), 1))

    @classmethod
    def build(cls, config: FuzzyMatchConfig, corpus: CorpusConfig, context: TransformContext) -> FuzzyMatch:
        return cls(
            read_pairs(config.tm_path, option="tm_path", delimiter=config.tm_delimiter),
            threshold=config.fuzzy_threshold,
            token=config.fuzzy_token,
            lengths=(config.fuzzymatch_min_length, config.fuzzymatch_max_length),
            ratio=config.fuzzy_corpus_ratio,
            training=context.training,
        )

    @classmethod
    def added_tokens(cls, config: FuzzyMatchConfig, corpus: CorpusConfig) -> list[str]:
        return [config.fuzzy_token]

    def augment(self, examples: Sequence[Example], *, limit: int) -> int:
        fit = [each for each in examples if self._fits(source_text(each)) and self._token not in source_text(each)]
        matches = self._matches([source_text(example) for example in fit])
        found = [(example, match) for example, match in zip(fit, matches, strict=True) if match is not None][:limit]
        for example, match in found:
            set_source(example, f"{source_text(example).rstrip()} {self._token} {match}")
        return len(found)

    def _matches(self, sources: Sequence[str]) -> list[str | None]:
        """For each source, the target of the most similar sentence, or None."""
        if not sources or not self._sources:
            return [None] * len(sources)
        scores = self._process.cdist(
            sources, self._sources, scorer=self._ratio, score_cutoff=self._threshold, dtype=np.float32, workers=-1
        )
        scores[scores >= _EXACT] = 0
        best = scores.argmax(axis=1)
        return [self._targets[column] if scores[row, column] > 0 else None for row, column in enumerate(best)]

    def _fits(self, sentence: str) -> bool:
        return self._lengths[0] <= len(sentence) <= self._lengths[1]
