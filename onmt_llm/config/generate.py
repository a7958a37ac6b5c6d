"""Options of decoding, the same for every engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.numbers import BeamSize, CountOrAll, Fraction, HeadsOrAll, LayerIndex, Length, LengthOrZero, Seed
from onmt_llm.config.section import Section


class GenerationConfig(Section):
    """How an answer is searched for or sampled."""

    beam_size: BeamSize = 1
    """Hypotheses kept alive at each step; 1 = greedy (or sampling)."""
    n_best: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Answers returned for each input."""
    max_length: Length = 256
    """Tokens an answer may have at most (new tokens, for a language model)."""
    min_length: LengthOrZero = 0
    """Tokens an answer has at least, before its end is allowed."""
    random_sampling_topk: CountOrAll = 1
    """Sample among the k best tokens; 1 = take the best, 0 or -1 = all of them."""
    random_sampling_topp: Fraction = 1.0
    """Sample among the fewest tokens whose probabilities sum to this; 0 or 1 = all of them."""
    random_sampling_temp: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Divide logits by this before sampling; 0 = take the best."""
    repetition_penalty: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Divide (positive) or multiply (negative) the logits of tokens already present by this (Keskar et al. 2019)."""
    block_ngram_repeat: LengthOrZero = 0
    """No n-gram of this length may occur twice in an answer; 0 = off."""
    ignore_when_blocking: list[str] = Field(default_factory=list)
    """With `block_ngram_repeat`: n-grams that hold one of these tokens may occur again."""
    length_penalty: Literal["none", "wu", "avg"] = "avg"
    """Divide scores by nothing, by ((5+n)/6)^alpha (Wu et al. 2016), or by n^alpha, where n counts the start token and
    the end token too."""
    alpha: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Exponent of the length penalty."""
    coverage_penalty: Literal["none", "wu", "summary"] = "none"
    """Beam search, encoder-decoder: take something off scores for source tokens with little attention (`wu`) or too
    much (`summary`)."""
    beta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of the coverage penalty."""
    stepwise_penalty: bool = False
    """Apply the coverage penalty at every step instead of once an answer has ended."""
    ratio: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Beam search ends: 0 = when the best continuation of a step is an end; above 0 = when it is not worth going on for
    an answer of ratio * source length tokens."""
    max_length_ratio: Annotated[float, Field(ge=0, le=1000)] = 1.25
    """Encoder-decoder: an answer has at most ratio * source length + 5 tokens; 0 = no such limit."""
    replace_unk: bool = False
    """Encoder-decoder: put the source token with most attention in the place of an unknown token."""
    report_align: bool = False
    """Encoder-decoder: find the source token that each token is aligned with."""
    alignment_layer: LayerIndex | None = None
    """Decoder layer whose attention is the alignment; negative = from the last one; null = the checkpoint's."""
    alignment_heads: HeadsOrAll | None = None
    """First heads of that layer that are averaged; 0 = all; null = the checkpoint's, or all of a layer named here."""
    ban_unk_token: bool = False
    """Never produce the unknown token."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts at which an answer ends, besides those of the checkpoint; they are not part of the answer."""
    stop_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Tokens of the vocabulary at which an answer ends, besides those of the checkpoint."""
    seed: Seed = -1
    """Seed of sampling; -1 = a new one each run."""

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random (temperature above 0 and more than one candidate)."""
        return self.random_sampling_topk != 1 and self.random_sampling_temp > 0

    def alignment(self, layer: int, heads: int) -> tuple[int, int]:
        """Layer and heads to align with, for a checkpoint that says `layer` and `heads`."""
        if self.alignment_layer is not None:
            return self.alignment_layer, self.alignment_heads or 0
        return layer, heads if self.alignment_heads is None else self.alignment_heads
