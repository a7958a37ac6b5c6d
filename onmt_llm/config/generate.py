"""Decoding options, the same for every engine, and the features in which engines differ."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from onmt_llm.config.numbers import BeamSize, CountOrAll, Fraction, HeadsOrAll, LayerIndex, Length, LengthOrZero, Seed
from onmt_llm.config.section import Section

Feature = Literal[
    "alpha",
    "length_penalty: wu",
    "coverage_penalty: wu",
    "coverage_penalty: summary",
    "stepwise_penalty",
    "ratio",
    "ignore_when_blocking",
    "presence_penalty",
    "frequency_penalty",
    "replace_unk",
    "report_align",
    "tgt_file_prefix",
]
"""What not every engine supports: options, and a way to call it."""
SOURCE_FEATURES: frozenset[Feature] = frozenset(
    {"coverage_penalty: wu", "coverage_penalty: summary", "replace_unk", "report_align"}
)
"""Features that need attention to a source: for encoder-decoder models only."""
ALL_FEATURES: frozenset[Feature] = frozenset(get_args(Feature))


class GenerationConfig(Section):
    """Beam search, greedy search and sampling."""

    beam_size: BeamSize = 1
    """Beam size; 1 = greedy search or sampling."""
    n_best: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of answers to return per input."""
    max_length: Length = 256
    """Maximum length of an answer in tokens (of new tokens, for a language model)."""
    min_length: LengthOrZero = 0
    """Minimum length of an answer in tokens."""
    random_sampling_topk: CountOrAll = 1
    """Top-k sampling: sample from the k most likely tokens; 1 = no sampling, 0 or -1 = all tokens."""
    random_sampling_topp: Fraction = 1.0
    """Top-p (nucleus) sampling: sample from the most likely tokens whose probabilities add up to this; 0 or 1 = all
    tokens."""
    random_sampling_temp: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Sampling temperature; 0 = always the most likely token."""
    repetition_penalty: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Repetition penalty (Keskar et al. 2019): divide positive and multiply negative logits of tokens already present
    by this."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtract this from the logits of tokens that the answer already contains, as in OpenAI's API."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtract this from the logit of a token once for each time that the answer already contains it, as in OpenAI's
    API."""
    block_ngram_repeat: LengthOrZero = 0
    """Forbid n-grams of this length to occur twice in an answer; 0 = off."""
    ignore_when_blocking: list[str] = Field(default_factory=list)
    """With `block_ngram_repeat`: n-grams that contain one of these tokens may repeat."""
    length_penalty: Literal["none", "wu", "avg"] = "avg"
    """Divide scores by nothing (`none`), by ((5+n)/6)^alpha (`wu`, Wu et al. 2016), or by n^alpha (`avg`); n counts the
    start and end tokens."""
    alpha: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Exponent of the length penalty."""
    coverage_penalty: Literal["none", "wu", "summary"] = "none"
    """Beam search, encoder-decoder: penalise source tokens with too little attention (`wu`) or too much (`summary`)."""
    beta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of the coverage penalty."""
    stepwise_penalty: bool = False
    """Apply the coverage penalty at every step instead of once at the end."""
    ratio: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Beam search: when to stop. 0 = as soon as the best hypothesis of a step is finished; above 0 = as soon as no
    unfinished hypothesis can win, assuming an answer length of ratio * source length."""
    max_length_ratio: Annotated[float, Field(ge=0, le=1000)] = 1.25
    """Encoder-decoder: limit answers to ratio * source length + 5 tokens; 0 = no such limit."""
    replace_unk: bool = False
    """Encoder-decoder: replace unknown tokens with the source token that has the most attention."""
    report_align: bool = False
    """Encoder-decoder: output the source token that each target token is aligned with."""
    alignment_layer: LayerIndex | None = None
    """Decoder layer whose attention is used as the alignment; negative = counted from the last; null = the
    checkpoint's."""
    alignment_heads: HeadsOrAll | None = None
    """Average the first N heads of that layer; 0 = all; null = the checkpoint's, or all if `alignment_layer` is set."""
    ban_unk_token: bool = False
    """Never generate the unknown token."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Stop strings, in addition to the checkpoint's; they are not part of the answer."""
    stop_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Stop tokens of the vocabulary, in addition to the checkpoint's."""
    seed: Seed = -1
    """Random seed of sampling; -1 = a new one each run."""

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled (temperature above 0 and more than one candidate)."""
        return self.random_sampling_topk != 1 and self.random_sampling_temp > 0

    @property
    def draws(self) -> bool:
        """Whether answers are drawn: tokens are sampled, and there is no beam, which ignores that."""
        return self.samples and self.beam_size == 1

    def requested_features(self, *, prefixes: bool = False) -> set[Feature]:
        """The features that a call with these options uses; `prefixes`: its answers start with given tokens."""
        beam = self.beam_size > 1
        requested: dict[Feature, bool] = {
            "alpha": beam and self.length_penalty == "avg" and self.alpha != 1.0,
            "length_penalty: wu": beam and self.length_penalty == "wu",
            "coverage_penalty: wu": self.coverage_penalty == "wu",
            "coverage_penalty: summary": self.coverage_penalty == "summary",
            "stepwise_penalty": self.stepwise_penalty,
            "ratio": beam and self.ratio > 0,
            "ignore_when_blocking": self.block_ngram_repeat > 0 and bool(self.ignore_when_blocking),
            "presence_penalty": self.presence_penalty != 0,
            "frequency_penalty": self.frequency_penalty != 0,
            "replace_unk": self.replace_unk,
            "report_align": self.report_align,
            "tgt_file_prefix": prefixes,
        }
        return {feature for feature, holds in requested.items() if holds}

    def alignment(self, layer: int, heads: int) -> tuple[int, int]:
        """Layer and heads of the alignment, for a checkpoint that stores `layer` and `heads`."""
        if self.alignment_layer is not None:
            return self.alignment_layer, self.alignment_heads or 0
        return layer, heads if self.alignment_heads is None else self.alignment_heads
