"""The engine that runs a CTranslate2 release of a decoder-only model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.generate.ct2.decoding import GENERATOR_FEATURES, Callback
from onmt_llm.generate.ct2.engine import Ct2Engine
from onmt_llm.generate.ct2.model import SCORE_TOKENS, ct2_errors
from onmt_llm.generate.engine import ContinuationScore, Hypothesis, check_continuations, check_sources
from onmt_llm.generate.lengths import BatchType, make_batches
from onmt_llm.log import log_once

_SIMILAR = 128
"""Prompts whose lengths differ by less may share a batch: what a prompt has beyond the shortest costs a step a token,
but a batch of its own costs a step for each token of its answer."""


class Ct2Generator(Ct2Engine):
    """Answers with a `ctranslate2.Generator`.

    The options mean what they mean in the torch engine, within these limits of CTranslate2:

    * `beam_size` > 1 with `random_sampling_topk` other than 1 is a beam search whose continuations are drawn at random;
      to avoid that, set `random_sampling_topk: 1`.
    * Unsupported features are refused; `length_penalty: wu` without a beam only scales the score.
    * Beams end by CTranslate2's own rule and its own measure of length; scores are converted to ours.
    * The probability of banned tokens (`min_length`, `ban_unk_token`, repeated n-grams) goes to the other tokens.
    * `seed`: CTranslate2's threads take a seed when they first draw. So a model has one seed for all its answers,
      which repeats exactly what one process after another asks in the same order and with the same `batch_size`; a
      later call with another seed is refused.
    * What a prompt has beyond a sliding window is read token by token, which is slow; the log says so once. With
      `repetition_penalty` or `block_ngram_repeat` such a prompt is refused.
    * In beam search a stop string cuts the finished answer instead of ending the search.

    Args:
        model: The loaded release.
        codec: Its vocabulary, tokeniser and template.
    """

    kind = "Generator"
    features = GENERATOR_FEATURES
    length_names = ("max_length", "min_length")

    def check(
        self,
        prompts: Sequence[Sequence[str]],
        options: GenerationConfig,
        *,
        prefixes: bool = False,
        places: Sequence[int] | None = None,
    ) -> None:
        """See `Ct2Engine.check`."""
        self._decoding.check(options, prefixes=prefixes)
        self._check_window(prompts, options)
        self._decoding.check_lengths(prompts, places)

    def batch_key(self, prompt: Sequence[str], options: GenerationConfig) -> Hashable:
        """See `Ct2Engine.batch_key` and `_batches`."""
        same_length = _needs_equal_lengths(options) or len(prompt) == 1
        return len(prompt) if same_length else (len(prompt) // _SIMILAR,)

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """See `Engine.score`."""
        check_sources(self._codec, sequences, sources)
        known = [self._known(sequence) for sequence in sequences]
        self._decoding.check_lengths(known)
        if self._codec.config.model.sliding_window is None:
            results = iter(self._score_batch([tokens for tokens in known if len(tokens) > 1]))
            return [next(results) if len(tokens) > 1 else [] for tokens in known]
        # CTranslate2 cannot mask the padding of a batch with a window, nor score what is beyond it.
        return [
            self._log_probs(tokens)
            if self._is_beyond_window(tokens)
            else self._score_batch([tokens])[0]
            if len(tokens) > 1
            else []
            for tokens in known
        ]

    def score_continuations(
        self, contexts: Sequence[Sequence[str]], continuations: Sequence[Sequence[str]]
    ) -> list[ContinuationScore]:
        """See `Engine.score_continuations`; each sequence is read once, but beginnings in common are not shared."""
        check_continuations(self._codec, contexts, continuations)
        pairs = [
            (self._known(context), self._known(text)) for context, text in zip(contexts, continuations, strict=True)
        ]
        self._decoding.check_lengths([[*context, *text] for context, text in pairs])
        by_sequence: dict[tuple[str, ...], list[int]] = {}
        for place, (context, text) in enumerate(pairs):
            by_sequence.setdefault((*context, *text[:-1]), []).append(place)
        found: dict[int, ContinuationScore] = {}
        for sequence, places in by_sequence.items():
            first = min(len(pairs[place][0]) for place in places) - 1
            log_probs_TV = log_softmax(self.logits(sequence)[first:])
            for place in places:
                context, text = pairs[place]
                wanted = self._codec.vocab.ids(text)
                start = len(context) - 1 - first
                rows_TV = log_probs_TV[start : start + len(text)]
                chosen_T = rows_TV[np.arange(len(wanted)), wanted]
                is_greedy = bool((rows_TV.argmax(-1) == wanted).all())
                found[place] = ContinuationScore(float(chosen_T.sum()), len(wanted), is_greedy)
        return [found[place] for place in range(len(pairs))]

    def _score_batch(self, batch: list[list[str]]) -> list[list[float]]:
        """Log-probabilities of all tokens but the first."""
        with ct2_errors():
            results = self._model.handle.score_batch(
                batch, max_batch_size=SCORE_TOKENS, batch_type="tokens", max_input_length=0
            )
            return [list(result.log_probs) for result in results]

    def _log_probs(self, tokens: Sequence[str]) -> list[float]:
        """Log-probability of each token after the first, from the logits."""
        log_probs_TV = log_softmax(self.logits(tokens)[:-1])
        return list(log_probs_TV[np.arange(len(log_probs_TV)), self._codec.vocab.ids(tokens[1:])])

    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`."""
        check_sources(self._codec, [sequence], None if source is None else [source])
        if not sequence:
            raise DataError("A sequence to be scored must have at least one token, but is empty.")
        known, window = self._known(sequence), self._codec.config.model.sliding_window
        rows = self._array(
            self._model.handle.forward_batch([self._codec.vocab.ids(known[:window])], return_log_probs=False)
        )[0]
        return np.concatenate([rows, self._later_logits(known, window)]) if self._is_beyond_window(known) else rows

    def _later_logits(self, tokens: list[str], window: int | None) -> np.ndarray:
        """Logits after each token beyond the window, where `forward_batch` fails; see `_with_short_prompt`."""
        with ct2_errors():
            results = self._model.handle.generate_batch(
                self._with_short_prompt([tokens]),
                max_length=1,
                end_token=[],  # an end token would be banned in all steps
                include_prompt_in_result=False,
                cache_static_prompt=False,
                return_logits_vocab=True,
            )
        return np.stack([self._array(step) for step in results[0].logits[0][1:]])

    def _array(self, values: Any) -> np.ndarray:
        """CTranslate2's values, which may be on the GPU or in half precision; numpy reads neither."""
        library = self._model.library
        return np.array(values.to_device(library.Device.cpu).to(library.DataType.float32), dtype=np.float32)

    def _answer_batch(
        self, prompts: list[list[str]], options: GenerationConfig, callback: Callback | None = None
    ) -> list[list[Hypothesis]]:
        results = self._model.handle.generate_batch(
            self._with_short_prompt(prompts),
            include_prompt_in_result=False,
            cache_static_prompt=False,
            **self._decoding.batch_options(options, callback),
        )
        answers = results[: len(prompts)]
        return [self._decoding.hypotheses(answer.sequences_ids, answer.scores, options) for answer in answers]

    def _start(self, prompt: Sequence[str], options: GenerationConfig, callback: Callback) -> Sequence[Any]:
        return self._model.handle.generate_batch(
            self._with_short_prompt([self._known(prompt)]),
            include_prompt_in_result=False,
            cache_static_prompt=False,
            asynchronous=True,
            callback=callback,
            **self._decoding.search_options(options),
        )

    def _with_short_prompt(self, prompts: list[list[str]]) -> list[list[str]]:
        """The prompts of a batch, after which comes one of the window's length if all are longer.

        CTranslate2 reads a prompt that is longer than the window in blocks, in which it computes other attention than
        the model does. But of several prompts it reads at once only what the shortest one has, and then one token at a
        time, as it does in an answer.
        """
        window = self._codec.config.model.sliding_window
        return [*prompts, prompts[0][:window]] if all(map(self._is_beyond_window, prompts)) else prompts

    def _known(self, tokens: Sequence[str]) -> list[str]:
        return self._codec.vocab.tokens(self._codec.vocab.ids(tokens))

    def _batches(
        self, prompts: Sequence[Sequence[str]], options: GenerationConfig, *, batch_size: int, batch_type: BatchType
    ) -> list[list[int]]:
        """Batches in which no prompt changes another one's answer.

        CTranslate2 reads a batch of unequal prompts at once only up to the shortest, and forces the rest token by
        token. Penalties then count the forced tokens, beam search finds other answers, and with a prompt of one token
        in the batch the others' prompts become part of their answers.
        """
        lengths = [len(prompt) for prompt in prompts]
        same_length = _needs_equal_lengths(options) or 1 in lengths
        return make_batches(lengths, batch_size=batch_size, batch_type=batch_type, same_length=same_length)

    def _is_beyond_window(self, tokens: Sequence[str]) -> bool:
        window = self._codec.config.model.sliding_window
        return window is not None and len(tokens) > window

    def _check_window(self, prompts: Sequence[Sequence[str]], options: GenerationConfig) -> None:
        if not any(map(self._is_beyond_window, prompts)):
            return
        window = self._codec.config.model.sliding_window
        if _has_penalties(options):
            raise UnsupportedError(
                f"A prompt of more than sliding_window = {window} tokens cannot be answered with repetition_penalty or "
                "block_ngram_repeat, since CTranslate2 would count its tokens as tokens of the answer.",
                hint="use the torch engine (a checkpoint instead of the release), or leave the option out",
            )
        log_once("A prompt is longer than sliding_window: CTranslate2 reads the rest of it token by token.")


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    """Natural log probabilities in float64."""
    shifted_TV = logits_TV.astype(np.float64)
    shifted_TV -= shifted_TV.max(-1, keepdims=True)
    return shifted_TV - np.log(np.exp(shifted_TV).sum(-1, keepdims=True))


def _has_penalties(options: GenerationConfig) -> bool:
    return options.repetition_penalty != 1.0 or options.block_ngram_repeat > 0


def _needs_equal_lengths(options: GenerationConfig) -> bool:
    return _has_penalties(options) or options.beam_size > 1
