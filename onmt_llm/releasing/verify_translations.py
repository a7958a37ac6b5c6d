"""Verify a CTranslate2 release of an encoder-decoder model: compare how it scores the model's translations.

CTranslate2 returns no logits for a given target, so log probabilities of tokens are compared: the model translates the
sentences of a text greedily, and both models then score these translations token by token.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Engine, Hypothesis
from onmt_llm.text.codec import Codec
from onmt_llm.text.features import SEPARATOR

MAX_TOKENS = 64
"""Limit of a source and of its translation."""

BOUNDS: dict[str, dict[str, float]] = {
    "float32": {"max_abs_dlogp": 1e-3},
    "float16": {"mean_abs_dlogp": 0.02, "perplexity_ratio": 1.02},
    "bfloat16": {"mean_abs_dlogp": 0.05, "perplexity_ratio": 1.02},
    "int16": {"mean_abs_dlogp": 0.02, "perplexity_ratio": 1.02},
    "int8": {"mean_abs_dlogp": 0.1, "perplexity_ratio": 1.05},
    "int8_float32": {"mean_abs_dlogp": 0.1, "perplexity_ratio": 1.05},
    "int8_float16": {"mean_abs_dlogp": 0.1, "perplexity_ratio": 1.05},
    "int8_bfloat16": {"mean_abs_dlogp": 0.1, "perplexity_ratio": 1.05},
}
"""Upper bounds for each quantisation: the largest or mean difference of a token's log probability, and the ratio of the
release's to the model's perplexity on the model's translations."""

_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n+")


@dataclass(frozen=True)
class ReferenceTranslations:
    """A model's translations of a text.

    Attributes:
        sources: Tokens of the sentences.
        answers: Their greedy translations.
        targets: The translations as targets to score: with the start token, and the end token if they ended.
        scores: The model's log probabilities of the targets' tokens.
        options: Settings of the greedy search.
    """

    sources: list[list[str]]
    answers: list[Hypothesis]
    targets: list[list[str]]
    scores: list[list[float]]
    options: GenerationConfig


def translate(engine: Engine, text: str) -> ReferenceTranslations:
    """The reference: sentences of `text`, the model's translations, and their scores.

    Raises:
        DataError: The text has no words.
    """
    sources = _sources(engine.codec, text)
    options = _greedy(engine.codec)
    answers = [best for best, *_ in engine.generate(sources, options)]
    targets = [_target(engine.codec, answer) for answer in answers]
    return ReferenceTranslations(sources, answers, targets, engine.score(targets, sources=sources), options)


def compare_translations(model: ReferenceTranslations, release: Engine) -> dict[str, float]:
    """The figures of the report; NaN counts as infinity."""
    ours = np.concatenate(model.scores)
    theirs = np.concatenate(release.score(model.targets, sources=model.sources))
    difference = np.abs(ours - theirs)
    difference[~np.isfinite(difference)] = math.inf
    again = [best for best, *_ in release.generate(model.sources, model.options)]
    same = sum(one.tokens == other.tokens for one, other in zip(model.answers, again, strict=True))
    perplexities = [float(np.exp(min(-scores.mean(), 700.0))) for scores in (ours, theirs)]
    return {
        "max_abs_dlogp": float(difference.max()),
        "mean_abs_dlogp": float(difference.mean()),
        "perplexity_model": perplexities[0],
        "perplexity_release": perplexities[1],
        "perplexity_ratio": perplexities[1] / perplexities[0],
        "greedy_agreement": same / len(again),
        "n_sentences": len(again),
        "n_tokens": len(ours),
    }


def _greedy(codec: Codec) -> GenerationConfig:
    """Greedy decoding that leaves positions for the start and end tokens."""
    return GenerationConfig(max_length=max(1, min(MAX_TOKENS, codec.config.model.max_position - 2)))


def _sources(codec: Codec, text: str) -> list[list[str]]:
    prefix, suffix = codec.source_frame
    longest = min(MAX_TOKENS, codec.config.model.max_position) - len(prefix) - len(suffix)
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]
    bodies = [tokens for tokens in (_encode(codec, sentence)[:longest] for sentence in sentences) if tokens]
    if not bodies:
        raise DataError("The text that a release is verified on must have at least one sentence, but has none.")
    return [[*prefix, *body, *suffix] for body in bodies]


def _encode(codec: Codec, sentence: str) -> list[str]:
    """Tokens of a sentence. For a model with source features, every token gets the next value of each feature."""
    vocabs = codec.feature_vocabs
    if not vocabs:
        return codec.src_tokenizer.encode(sentence)
    plain = " ".join(word.split(SEPARATOR)[0] for word in sentence.split())
    tokens = codec.src_tokenizer.encode(plain)
    return [SEPARATOR.join([t, *(v[i % len(v)] for v in vocabs)]) for i, t in enumerate(tokens)]


def _target(codec: Codec, answer: Hypothesis) -> list[str]:
    eos = codec.vocab.specials.eos
    ended = answer.finish_reason == "stop" and eos in codec.vocab
    return [*codec.start_tokens, *answer.tokens, *([eos] if ended and eos else [])]
