"""The `Engine` protocol, its results, and the checks that engines share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from onmt_llm.config.generate import Feature, GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.generate.lengths import BatchType
from onmt_llm.log import log_once

if TYPE_CHECKING:
    import numpy as np

    from onmt_llm.text.codec import Codec

FinishReason = Literal["stop", "length"]
TARGET_VOCABULARIES = ("vocabulary.json", "shared_vocabulary.json", "target_vocabulary.json")
"""Files of a CTranslate2 directory with the output tokens: a language model's, or an encoder-decoder's."""


@dataclass(frozen=True)
class Hypothesis:
    """One answer.

    Attributes:
        tokens: Its tokens, without the end token and those of a stop string.
        text: Its text, up to the stop string.
        score: Sum of the tokens' log probabilities (penalties of tokens applied, temperature not), end token included,
            divided by the length penalty, less the coverage penalty.
        finish_reason: "stop" = end token or stop string; "length" = `max_length` reached.
        alignment: For each token the place of its source token, if the options request it.
    """

    tokens: list[str] = field(repr=False)
    text: str
    score: float
    finish_reason: FinishReason
    alignment: tuple[int, ...] | None = None

    def as_delta(self) -> Delta:
        """The whole answer as one piece of a stream."""
        return Delta(self.text, len(self.tokens), self.finish_reason)


@dataclass(frozen=True)
class TokenLogProbs:
    """The log probability of a token in its place.

    Attributes:
        token: As in the vocabulary.
        log_prob: Natural logarithm, of the distribution on which scores are based.
        top: The most likely tokens in its place with theirs, best first, as many as were requested.
    """

    token: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer that is being generated.

    Attributes:
        text: New text; empty while a character or a possible stop string is incomplete.
        tokens: Number of tokens since the last delta.
        finish_reason: Set in the last delta: "stop", "length", or "stopped" if `should_stop` returned True.
        log_probs: Of the tokens since the last delta that had any, where they were requested.
    """

    text: str
    tokens: int
    finish_reason: Literal["stop", "length", "stopped"] | None = None
    log_probs: tuple[TokenLogProbs, ...] = ()


@dataclass(frozen=True)
class ContinuationScore:
    """The score of a continuation, given its context.

    Attributes:
        log_prob: Sum of the natural log probabilities of its tokens.
        tokens: Their number.
        is_greedy: No other token is more likely in any of their places.
    """

    log_prob: float
    tokens: int
    is_greedy: bool


class Engine(Protocol):
    """A loaded model with its tokeniser and template, ready to answer."""

    @property
    def codec(self) -> Codec: ...

    def for_languages(self, src: str = "", tgt: str = "") -> Engine:
        """The same model between two languages, by their codes; "" = the model's default (`Codec.for_languages`).

        Raises:
            ConfigError: The model has no such language.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[str]],
        options: GenerationConfig,
        *,
        batch_size: int = 16,
        batch_type: BatchType = "sents",
        prefixes: Sequence[Sequence[str]] | None = None,
        places: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """Answer prompts.

        Args:
            prompts: Tokens: the text that a language model continues, or the source of an encoder-decoder. An empty
                prompt gets empty answers.
            options: How to search or sample.
            batch_size: Prompts, or prompt tokens, that are decoded together.
            batch_type: Unit of `batch_size`.
            prefixes: Tokens with which the answers of each prompt start; they count in scores, not in lengths.
            places: Place of each prompt in the whole input, where this is a part of it: a seed gives each place its
                own random numbers. None = 0, 1, 2 ...

        Returns:
            For each prompt, in order, its `n_best` answers, best first.

        Raises:
            ConfigError: The options contradict each other, or this engine does not support one of them.
        """
        ...

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        """Answer one prompt piece by piece; together the pieces are the text that `generate` returns.

        Args:
            prompt: As in `generate`.
            options: As in `generate`. Beam search gives one piece, since its answer is known only at the end.
            should_stop: Called after each token, and by the torch engine between pieces of a long prompt (256 tokens);
                True ends the answer.
        """
        ...

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """Log probability (natural) of each token from the second on, given those before it (and its source).

        Raises:
            DataError: An encoder-decoder lacks a source.
            UnsupportedError: A decoder-only model has sources.
        """
        ...

    def score_continuations(
        self, contexts: Sequence[Sequence[str]], continuations: Sequence[Sequence[str]]
    ) -> list[ContinuationScore]:
        """Score continuations of contexts; what many contexts begin with need not be read for each of them.

        Args:
            contexts: Tokens, at least one each.
            continuations: Tokens of the continuation of each context, at least one each.

        Raises:
            DataError: A context or a continuation is empty, or too long.
            UnsupportedError: The model is not decoder-only.
        """
        ...

    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """Raw float32 logits (T, V): row t is the prediction after token t of `sequence`."""
        ...


def as_paths(path: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """The paths of one model or of an ensemble, as a list."""
    return [path] if isinstance(path, str | Path) else list(path)


def check_options(options: GenerationConfig) -> None:
    """Refuse options that contradict each other; the same for every engine.

    Raises:
        ConfigError: One sentence that names both options.
    """
    draws = options.beam_size == 1 and options.samples
    if options.n_best > options.beam_size and not draws:
        raise ConfigError(
            f"n_best must be <= beam_size without sampling, but is {options.n_best} with beam_size "
            f"{options.beam_size}.",
            hint="raise beam_size, or sample with random_sampling_topk: 0 (all tokens) or more than 1",
        )
    if options.min_length > options.max_length:
        raise ConfigError(
            f"min_length must be <= max_length, but is {options.min_length} with max_length {options.max_length}."
        )
    if options.coverage_penalty != "none" and options.beam_size == 1 and options.samples:
        raise ConfigError(
            f"coverage_penalty must be none where answers are sampled, but is {options.coverage_penalty}.",
            hint="raise beam_size, or set random_sampling_topk: 1",
        )


def check_supported(requested: Collection[Feature], supported: Collection[Feature], *, engine: str, hint: str) -> None:
    """Refuse features that an engine does not support.

    Args:
        requested: See `GenerationConfig.requested_features`.
        supported: Features of the engine.
        engine: Its name in the message.
        hint: What to do.

    Raises:
        ConfigError: The message names the features and the engine.
    """
    missing = sorted(set(requested).difference(supported))
    if missing:
        raise ConfigError(f"The options must be among those of {engine}, which has no {', '.join(missing)}.", hint=hint)


def check_positions(
    lengths: Sequence[int], model: ModelConfig, *, has_table: bool, places: Sequence[int] | None = None
) -> None:
    """Warn of inputs that are longer than the model was trained for; the same for every engine.

    Args:
        lengths: Tokens of each input, in order.
        model: The architecture.
        has_table: This engine looks positions up in a table, which has an end.
        places: See `Engine.generate`.

    Raises:
        DataError: An input has more tokens than such a table has rows.
    """
    longer = [place for place, length in enumerate(lengths) if length > model.max_position]
    if not longer:
        return
    first = places[longer[0]] if places is not None else longer[0]
    excess = (
        f"{len(longer)} of {len(lengths)} inputs (the first is number {first + 1}) have more, "
        f"up to {max(lengths)} tokens"
    )
    if has_table:
        raise DataError(
            f"An input must have at most max_position = {model.max_position} tokens with {model.position} positions, "
            f"but {excess}.",
            hint="shorten them, or split them into several",
        )
    log_once(
        f"The model was trained for inputs of at most max_position = {model.max_position} tokens, but {excess}: their "
        "answers may be worthless.",
        level=logging.WARNING,
    )


def check_continuations(
    codec: Codec, contexts: Sequence[Sequence[str]], continuations: Sequence[Sequence[str]]
) -> None:
    """Refuse what `Engine.score_continuations` cannot score; the same for every engine.

    Raises:
        DataError: A context or a continuation is empty.
        UnsupportedError: The model is not decoder-only.
    """
    if not codec.config.model.is_decoder_only:
        raise UnsupportedError(
            "A model that scores continuations must be decoder-only, but this one is an encoder-decoder.",
            hint="score() scores its targets, given their sources",
        )
    for name, texts in (("context", contexts), ("continuation", continuations)):
        for place, text in enumerate(texts, 1):
            if not text:
                raise DataError(f"A {name} to be scored must have at least one token, but number {place} is empty.")


def check_sources(codec: Codec, sequences: Sequence[Sequence[str]], sources: Sequence[Sequence[str]] | None) -> None:
    """Refuse sources that the model does not read, or that are missing; the same for every engine.

    Raises:
        DataError: An encoder-decoder has not a source for each sequence.
        UnsupportedError: A decoder-only model has sources.
    """
    if codec.config.model.is_decoder_only:
        if sources is not None:
            raise UnsupportedError(
                "A decoder-only model must be given no sources, but is.",
                hint="the source is the beginning of a sequence",
            )
    elif sources is None or len(sources) != len(sequences) or not all(sources):
        raise DataError("An encoder-decoder model scores a target given its source, but the source is missing.")


def end_ids(codec: Codec, options: GenerationConfig | None = None) -> list[int]:
    """Ids of the tokens that end an answer: the end-of-sequence token, the checkpoint's and the options' stop tokens.

    Raises:
        ConfigError: A stop token of the options is not in the vocabulary.
    """
    missing = [token for token in codec.stop_tokens if token not in codec.vocab]
    if missing:
        log_once(f"Not in the vocabulary, so an answer cannot end there: {', '.join(missing)}", level=logging.WARNING)
    requested = options.stop_tokens if options is not None else []
    for token in requested:
        if token not in codec.vocab:
            raise ConfigError(f"'stop_tokens' must be tokens of the vocabulary, but '{token}' is not one.")
    return sorted(set(codec.vocab.ids(token for token in [*codec.stop_tokens, *requested] if token in codec.vocab)))


def empty_answers(options: GenerationConfig) -> list[Hypothesis]:
    """Answers to an empty prompt: empty, to keep its place in the output."""
    return [Hypothesis([], "", 0.0, "stop") for _ in range(options.n_best)]
