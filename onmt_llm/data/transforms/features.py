"""`inferfeats`: copy the features of source words to their tokens."""

from __future__ import annotations

from typing import Literal

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.errors import DataError
from onmt_llm.text.features import spread


class InferFeatsConfig(Section):
    """Options of `inferfeats`: features of source words."""

    reversible_tokenization: Literal["joiner", "spacer"] = "joiner"
    """Accepted for OpenNMT-py without effect: the tokens show whether spaces or joints are marked."""


@TRANSFORMS.register("inferfeats")
class InferFeats(Transform[InferFeatsConfig]):
    """Gives every token the features of the word that it belongs to; must come after the tokeniser."""

    section = "inferfeats"
    Config = InferFeatsConfig
    counts_tokens = True

    @classmethod
    def build(cls, config: Section, corpus: CorpusConfig, context: TransformContext) -> InferFeats:
        return cls()

    def __call__(self, example: Example) -> Example | None:
        if example.src_features is None:
            return example
        tokens = [token for segment in example.src for token in segment.tokens or ()]
        try:
            carried = spread(tokens, example.src_features)
        except DataError as error:
            where = f"Corpus '{example.corpus}', line {example.line}: "
            raise DataError(where + error.message, hint=error.hint) from error
        for segment in example.src:
            count = len(segment.tokens or ())
            segment.tokens, carried = carried[:count], carried[count:]
        example.src_features = None
        return example
