"""Log probabilities and perplexities of given texts, line by line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine


@dataclass(frozen=True)
class LineScore:
    """The score of a line.

    Attributes:
        log_prob: Sum of the natural log probabilities of its tokens, end token included.
        tokens: Number of these tokens; 0 = the line or its source is empty.
    """

    log_prob: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(-log_prob / tokens); NaN for a line without tokens."""
        return perplexity(-self.log_prob / self.tokens) if self.tokens else math.nan


def perplexity(loss: float) -> float:
    """exp(loss); infinity on overflow."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def score_texts(engine: Engine, texts: Sequence[Sequence[str]]) -> list[LineScore]:
    """Score texts with a language model: every token after the first, and the end token. An empty text has no score.

    Args:
        engine: Engine of a decoder-only model.
        texts: Tokens, with the start token if the model has one (`Codec.encode`).
    """
    end = _end(engine)
    return _sums(engine.score([[*text, *end] if text else [] for text in texts]))


def score_pairs(engine: Engine, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> list[LineScore]:
    """Score targets given their sources: every token of the target, and the end token.

    For a language model the target continues the source. A pair without a source has no score.
    """
    end = _end(engine)
    if engine.codec.config.model.is_decoder_only:
        whole = [[*source, *target, *end] for source, target in zip(sources, targets, strict=True)]
        scores = engine.score([sequence if source else [] for sequence, source in zip(whole, sources, strict=True)])
        return _sums(
            [score[len(source) - 1 :] if source else [] for score, source in zip(scores, sources, strict=True)]
        )
    start = engine.codec.start_tokens
    places = [place for place, source in enumerate(sources) if source]
    result = [LineScore(0.0, 0)] * len(sources)
    sequences = [[*start, *targets[place], *end] for place in places]
    scores = engine.score(sequences, sources=[sources[place] for place in places])
    # the first of the scores is that of the second token; what the decoder is given is not scored
    found = _sums([score[max(len(start) - 1, 0) :] for score in scores])
    for place, score in zip(places, found, strict=True):
        result[place] = score
    return result


def _end(engine: Engine) -> list[str]:
    eos = engine.codec.config.specials.eos
    return [eos] if eos is not None and eos in engine.codec.vocab else []


def _sums(scores: Sequence[Sequence[float]]) -> list[LineScore]:
    return [LineScore(math.fsum(score), len(score)) for score in scores]
