"""`deduplicate`: drop duplicates among the examples of one bucket.

The window is one bucket (`bucket_size`), and no state is kept between buckets, so the result does not depend on the
number of processes or on interruptions of a run.

Exact duplicates are found by a 64-bit hash, near duplicates by MinHash (datasketch): sets of word n-grams whose Jaccard
similarity is above the threshold share, with high probability, a band of their signatures (Broder 1997; Leskovec et
al., Mining of Massive Datasets, ch. 3). If a short corpus is read again within a bucket, an example is not a duplicate
of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Length
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, text_of
from onmt_llm.data.selection.duplicates import HashKeys, hash64, min_hashes
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext


class DeduplicateConfig(Section):
    """Options of `deduplicate`: drop repeated examples."""

    dedup_method: Literal["exact", "near"] = "exact"
    """`exact`: equal text. `near`: most word n-grams are equal."""
    dedup_on: Literal["both", "src", "tgt"] = "both"
    """Side to compare; `both` = source and target together."""
    dedup_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """`near`: minimum share of common n-grams (Jaccard similarity) for a duplicate."""
    dedup_ngram: Length = 3
    """`near`: words per n-gram."""
    dedup_permutations: Annotated[int, Field(ge=16, le=65536)] = 128
    """`near`: number of MinHash permutations; more is slower and more accurate."""


@TRANSFORMS.register("deduplicate")
class Deduplicate(Transform[DeduplicateConfig]):
    """Keeps only the first of several duplicates in a bucket.

    Args:
        text: Returns the part of an example that is compared.
        keys: Returns the hashes of a text.
        reason: Key under which duplicates are counted.
    """

    section = "deduplicate"
    Config = DeduplicateConfig
    needs_text = True
    compares = True

    def __init__(self, *, text: Callable[[Example], str], keys: Callable[[str], HashKeys], reason: str) -> None:
        super().__init__()
        self._text = text
        self._keys = keys
        self._reason = reason

    @classmethod
    def build(cls, config: DeduplicateConfig, corpus: CorpusConfig, context: TransformContext) -> Deduplicate:
        near = config.dedup_method == "near"
        return cls(
            text=_TEXTS[config.dedup_on],
            keys=_near(config) if near else _exact,
            reason="near_duplicate" if near else "duplicate",
        )

    def __call__(self, example: Example) -> Example | None:
        return example

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        kept: list[Example] = []
        first: dict[int, tuple[Path | None, int]] = {}  # where each key was seen first
        for example in examples:
            keys, place = self._keys(self._text(example)), (example.path, example.line)
            if any(first.get(key, place) != place for key in keys):
                self.dropped[self._reason] += 1
                continue
            first.update(dict.fromkeys(keys, place))
            kept.append(example)
        return kept


_TEXTS: dict[str, Callable[[Example], str]] = {
    "src": lambda example: text_of(example.src),
    "tgt": lambda example: text_of(example.tgt),
    "both": lambda example: f"{text_of(example.src)}\n\0\n{text_of(example.tgt)}",
}


def _exact(text: str) -> HashKeys:
    return (hash64(text.encode("utf-8", "surrogatepass")),)


def _near(config: DeduplicateConfig) -> Callable[[str], HashKeys]:
    return min_hashes(
        threshold=config.dedup_threshold, ngram=config.dedup_ngram, permutations=config.dedup_permutations
    )
