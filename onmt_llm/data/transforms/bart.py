"""`bart`: BART's noise (Lewis et al. 2020, https://arxiv.org/abs/1910.13461) on the source side, in training only.

The target is not changed: with the same file as `path_src` and `path_tgt`, a model learns to restore the text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.transforms.noise import NoiseConfig, drawable, fixed, inputs
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.text.features import words_of
from onmt_llm.text.segment import Segment

_FULL_STOPS = frozenset(".?!")
_MARKS = "￭▁Ġ"


class Noising:
    """BART's noise on a list of tokens.

    Args:
        config: Kinds and amounts of noise.
        vocab: Tokens from which random replacements are drawn.
        control_tokens: Tokens that are never changed, besides placeholders `｟...｠`.
    """

    def __init__(self, config: NoiseConfig, *, vocab: Sequence[str], control_tokens: Collection[str]) -> None:
        self._config = config
        self._vocab = vocab
        self._is_fixed = fixed(control_tokens)

    def __call__(self, tokens: list[str], rng: np.random.Generator) -> list[str]:
        """Apply all configured noise, in BART's order."""
        config = self._config
        if all(map(self._is_fixed, tokens)):
            return tokens
        if config.permute_sent_ratio:
            tokens = self.permute(tokens, rng)
        if config.mask_ratio:
            tokens = self.mask(tokens, rng)
        if config.insert_ratio:
            tokens = self.insert(tokens, math.ceil(len(tokens) * config.insert_ratio), rng)
        if config.rotate_ratio and len(tokens) > 1 and rng.random() < config.rotate_ratio:
            start = int(rng.integers(1, len(tokens)))
            tokens = tokens[start:] + tokens[:start]
        return tokens

    def permute(self, tokens: list[str], rng: np.random.Generator) -> list[str]:
        """Permute a fraction of the sentences."""
        sentences = split_sentences(tokens)
        chosen = rng.permutation(len(sentences))[: math.ceil(len(sentences) * self._config.permute_sent_ratio)]
        order = np.arange(len(sentences))
        order[chosen] = rng.permutation(chosen)
        return [token for number in order for token in sentences[number]]

    def mask(self, tokens: list[str], rng: np.random.Generator) -> list[str]:
        """Mask a fraction of the words, singly or in spans."""
        words = self._words(tokens)
        candidates = [n for n, (start, end) in enumerate(words) if not any(map(self._is_fixed, tokens[start:end]))]
        lengths = self._lengths(math.ceil(len(candidates) * self._config.mask_ratio), rng)
        spans = [length for length in lengths if length][: len(candidates)]
        masked: list[str | None] = list(tokens)
        for number, length in zip(rng.permutation(candidates)[: len(spans)], spans, strict=True):
            covered = [place for start, end in words[number : number + length] for place in range(start, end)]
            self._replace(masked, [place for place in covered if not self._is_fixed(tokens[place])], rng)
        kept = [token for token in masked if token is not None]
        return self.insert(kept, lengths.count(0), rng)

    def insert(self, tokens: list[str], count: int, rng: np.random.Generator) -> list[str]:
        """Insert masks or random tokens at random positions."""
        total = len(tokens) + count
        at = rng.permutation(total)[:count]
        drawn = math.ceil(count * self._config.random_ratio)
        put = {int(place): self._filling(number < drawn, rng) for number, place in enumerate(at)}
        rest = iter(tokens)
        return [put[place] if place in put else next(rest) for place in range(total)]

    def _words(self, tokens: Sequence[str]) -> list[tuple[int, int]]:
        """Start and end of each word; with `mask_length: subword`, every token is a word."""
        if self._config.mask_length == "subword":
            return [(place, place + 1) for place in range(len(tokens))]
        numbers = words_of(tokens)
        starts = [place for place in range(len(tokens)) if not place or numbers[place] != numbers[place - 1]]
        return list(pairwise([*starts, len(tokens)]))

    def _lengths(self, budget: int, rng: np.random.Generator) -> list[int]:
        """Span lengths that add up to `budget` words; a span of length 0 inserts a mask."""
        if self._config.mask_length != "span-poisson":
            return [1] * budget
        lengths: list[int] = []
        while budget:
            lengths.append(min(int(rng.poisson(self._config.poisson_lambda)), budget))
            budget -= lengths[-1]
        return lengths

    def _replace(self, masked: list[str | None], places: Sequence[int], rng: np.random.Generator) -> None:
        """Mask the tokens at `places` as one unit; None marks a deleted token."""
        is_random = rng.random() < self._config.random_ratio
        for number, place in enumerate(places):
            stands = self._config.replace_length == -1 or (self._config.replace_length == 1 and number == 0)
            masked[place] = self._filling(is_random, rng) if stands else None

    def _filling(self, is_random: bool, rng: np.random.Generator) -> str:
        if is_random and self._vocab:
            return self._vocab[int(rng.integers(len(self._vocab)))]
        return self._config.mask_token


@TRANSFORMS.register("bart")
class Bart(Transform[NoiseConfig]):
    """BART's noise on the source side; without a target side, on each part that is not trained.

    Args:
        noising: Applies the noise; None outside training.
    """

    section = "noise"
    Config = NoiseConfig
    needs_tokens = True
    rewrites = True

    def __init__(self, noising: Noising | None) -> None:
        super().__init__()
        self._noising = noising
        self._random = np.random.default_rng(0)

    @classmethod
    def build(cls, config: NoiseConfig, corpus: CorpusConfig, context: TransformContext) -> Bart:
        vocab = drawable(context.codec.src_vocab, {*context.control_tokens, config.mask_token})
        noising = Noising(config, vocab=vocab, control_tokens=context.control_tokens)
        return cls(noising if context.training else None)

    @classmethod
    def added_tokens(cls, config: NoiseConfig, corpus: CorpusConfig) -> list[str]:
        return [config.mask_token]

    def __call__(self, example: Example) -> Example | None:
        if self._noising is None:
            return example
        if example.tgt:
            tokens = self._noising(side_tokens(example.src), self._random)
            example.src = [Segment(tokens=tokens, train_on=all(segment.train_on for segment in example.src))]
        else:
            for segment in inputs(example):
                segment.tokens = self._noising(segment.tokens or [], self._random)
        return example

    def reseed(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)


def split_sentences(tokens: Sequence[str]) -> list[list[str]]:
    """Split after each full stop, question mark or exclamation mark (after the last of several in a row)."""
    is_stop = [token.strip(_MARKS) in _FULL_STOPS for token in tokens]
    sentences: list[list[str]] = [[]]
    for place, token in enumerate(tokens):
        sentences[-1].append(token)
        more = place + 1 < len(tokens)
        if is_stop[place] and more and not is_stop[place + 1]:
            sentences.append([])
    return sentences
