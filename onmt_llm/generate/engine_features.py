"""What not every engine can do: one table of features, of which an engine declares those that it has."""

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
"""What needs attention to a source: only encoder-decoder models have it."""
ALL_FEATURES: frozenset[Feature] = SOURCE_FEATURES | {
    "alpha",
    "length_penalty: wu",
    "stepwise_penalty",
    "ratio",
    "ignore_when_blocking",
    "tgt_file_prefix",
    "several models",
}


def asked_features(options: GenerationConfig, *, prefixes: bool = False, models: int = 1) -> set[Feature]:
    """The features that a call makes use of.

    Args:
        options: Of the call.
        prefixes: Answers are to begin with given tokens.
        models: How many models answer together.
    """
    beam = options.beam_size > 1
    asked: dict[Feature, bool] = {
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
    return {feature for feature, holds in asked.items() if holds}


def check_supported(asked: Collection[Feature], supported: Collection[Feature], *, engine: str, hint: str) -> None:
    """Refuse what an engine does not have.

    Args:
        asked: See `asked_features`.
        supported: What the engine has.
        engine: Its name in the message.
        hint: What to do about it.

    Raises:
        ConfigError: The features by name, and the engine.
    """
    missing = sorted(set(asked).difference(supported))
    if missing:
        raise ConfigError(f"The options must be among those of {engine}, which has no {', '.join(missing)}.", hint=hint)
