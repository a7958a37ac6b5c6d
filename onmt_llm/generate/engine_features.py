"""Features that not every engine supports: one table; each engine declares its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError

Feature = Literal[
    "alpha",
    "length_penalty: wu",
    "coverage_penalty: wu",
    "coverage_penalty: summary",
    "stepwise_penalty",
    "ratio",
    "ignore_when_blocking",
    "replace_unk",
    "report_align",
    "tgt_file_prefix",
    "several models",
]
SOURCE_FEATURES: frozenset[Feature] = frozenset(
    {"coverage_penalty: wu", "coverage_penalty: summary", "replace_unk", "report_align"}
)
"""Features that need attention to a source: for encoder-decoder models only."""
ALL_FEATURES: frozenset[Feature] = SOURCE_FEATURES | {
    "alpha",
    "length_penalty: wu",
    "stepwise_penalty",
    "ratio",
    "ignore_when_blocking",
    "tgt_file_prefix",
    "several models",
}


def requested_features(options: GenerationConfig, *, prefixes: bool = False, models: int = 1) -> set[Feature]:
    """The features that a call uses.

    Args:
        options: Of the call.
        prefixes: Answers start with given tokens.
        models: Number of models in the ensemble.
    """
    beam = options.beam_size > 1
    requested: dict[Feature, bool] = {
        "alpha": beam and options.length_penalty == "avg" and options.alpha != 1.0,
        "length_penalty: wu": beam and options.length_penalty == "wu",
        "coverage_penalty: wu": options.coverage_penalty == "wu",
        "coverage_penalty: summary": options.coverage_penalty == "summary",
        "stepwise_penalty": options.stepwise_penalty,
        "ratio": beam and options.ratio > 0,
        "ignore_when_blocking": options.block_ngram_repeat > 0 and bool(options.ignore_when_blocking),
        "replace_unk": options.replace_unk,
        "report_align": options.report_align,
        "tgt_file_prefix": prefixes,
        "several models": models > 1,
    }
    return {feature for feature, holds in requested.items() if holds}


def check_supported(requested: Collection[Feature], supported: Collection[Feature], *, engine: str, hint: str) -> None:
    """Refuse features that an engine does not support.

    Args:
        requested: See `requested_features`.
        supported: Features of the engine.
        engine: Its name in the message.
        hint: What to do.

    Raises:
        ConfigError: The message names the features and the engine.
    """
    missing = sorted(set(requested).difference(supported))
    if missing:
        raise ConfigError(f"The options must be among those of {engine}, which has no {', '.join(missing)}.", hint=hint)
