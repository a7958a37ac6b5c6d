"""`uppercase`: convert some examples to capitals, so that the model learns to handle them."""

from __future__ import annotations

import random
import re
import unicodedata

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Fraction
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, rewrite_both
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext

_PLACEHOLDER = re.compile("(｟[^｠]*｠)")


class UppercaseConfig(Section):
    """Options of `uppercase`: examples in capital letters."""

    upper_corpus_ratio: Fraction = 0.01
    """Training: fraction of examples to write in capital letters."""


@TRANSFORMS.register("uppercase")
class Uppercase(Transform[UppercaseConfig]):
    """Converts an example to capitals without accents; ｟placeholders｠ are not changed.

    Args:
        ratio: Fraction of the examples.
    """

    section = "uppercase"
    Config = UppercaseConfig
    needs_text = True

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self._random = random.Random(0)

    @classmethod
    def build(cls, config: UppercaseConfig, corpus: CorpusConfig, context: TransformContext) -> Uppercase:
        return cls(config.upper_corpus_ratio if context.training else 0.0)

    def __call__(self, example: Example) -> Example | None:
        if self._random.random() >= self.ratio:
            return example
        return rewrite_both(example, capitals, capitals)

    def reseed(self, seed: int) -> None:
        self._random.seed(seed)


def capitals(text: str) -> str:
    """Convert a text to capitals without accents."""
    parts = _PLACEHOLDER.split(text)
    return "".join(part if index % 2 else _capitals(part) for index, part in enumerate(parts))


def _capitals(text: str) -> str:
    apart = unicodedata.normalize("NFD", text.upper())
    # compose again, so that Korean syllables are not left as separate letters
    return unicodedata.normalize("NFC", "".join(c for c in apart if unicodedata.category(c) != "Mn"))
