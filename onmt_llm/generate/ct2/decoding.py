"""Our generation options in CTranslate2's terms, and its results as our hypotheses and deltas."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onmt_llm.config.generate import Feature, GenerationConfig
from onmt_llm.generate.ct2.model import EXITING, Ct2Model, ct2_errors
from onmt_llm.generate.engine import (
    Delta,
    FinishReason,
    Hypothesis,
    check_options,
    check_positions,
    check_supported,
    empty_answers,
    end_ids,
)
from onmt_llm.generate.lengths import length_penalty
from onmt_llm.text.decoding import AnswerText

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec

GENERATOR_FEATURES: frozenset[Feature] = frozenset({"alpha"})
"""Features of CTranslate2's generators, of those that not every engine has."""
TRANSLATOR_FEATURES: frozenset[Feature] = GENERATOR_FEATURES | {"replace_unk", "report_align"}
"""Features of its translators, which return their attention."""

Callback = Callable[[Any], bool]
"""Called with each step of CTranslate2; True ends the answer of that step."""
GenerateBatch = Callable[[list[list[str]], GenerationConfig, "Callback | None"], list[list[Hypothesis]]]
"""A call of CTranslate2."""


class Ct2Decoding:
    """Searches and samples with a CTranslate2 model.

    Args:
        model: The loaded release.
        codec: Its vocabulary, tokeniser and template.
        features: `GENERATOR_FEATURES` or `TRANSLATOR_FEATURES`.
        length_names: CTranslate2's names of `max_length` and `min_length` for this kind of model.
    """

    def __init__(
        self, model: Ct2Model, codec: Codec, *, features: frozenset[Feature], length_names: tuple[str, str]
    ) -> None:
        self._model, self._codec = model, codec
        self._features, self._length_names = features, length_names
        # Rows of the embedding beyond the vocabulary have names of their own in the release; they are never produced.
        banned = [*codec.config.banned_tokens, *model.tokens[len(codec.vocab) :]]
        self._banned = [[token] for token in banned]

    @cached_property
    def prefix(self) -> list[str]:
        """Tokens that the decoder is given, without the first if the release has that."""
        return self._codec.start_tokens[self._codec.fixed_start is not None :]

    @cached_property
    def forced(self) -> int:
        """How many of these are part of CTranslate2's answers: they count in its lengths, but not in its scores."""
        return 0 if self._codec.task == "lm" else len(self._codec.start_tokens) - 1

    def check(self, options: GenerationConfig, *, prefixes: bool = False) -> None:
        """Refuse options that contradict each other, or that CTranslate2 does not have."""
        check_options(options)
        check_supported(
            options.requested_features(prefixes=prefixes),
            self._features,
            engine=f"the CTranslate2 {self._model.kind}",
            hint="use the torch engine (a checkpoint instead of the release), or leave it out",
        )

    def check_lengths(self, texts: Sequence[Sequence[str]], places: Sequence[int] | None = None) -> None:
        """Check that texts fit into the model; CTranslate2's tables of sinusoids have an end too."""
        config = self._codec.config.model
        has_table = config.position in ("learned", "sinusoidal")
        check_positions([len(text) for text in texts], config, has_table=has_table, places=places)

    def generate(
        self,
        prompts: Sequence[list[str]],
        options: GenerationConfig,
        batches: Sequence[list[int]],
        generate_batch: GenerateBatch,
    ) -> list[list[Hypothesis]]:
        """Answer prompts batch by batch, several batches at once where the model has several workers.

        Args:
            prompts: Tokens.
            options: How to search or sample.
            batches: Places in `prompts`; a prompt that is in no batch gets empty answers.
            generate_batch: Calls CTranslate2.
        """
        answers: list[list[Hypothesis]] = [empty_answers(options) for _ in prompts]
        self._model.seed(options)
        with ct2_errors(), ThreadPoolExecutor(self._model.workers) as pool:
            results = pool.map(
                lambda batch: generate_batch([prompts[place] for place in batch], options, None), batches
            )
            for batch, found in zip(batches, results, strict=True):
                for place, hypotheses in zip(batch, found, strict=True):
                    answers[place] = hypotheses
        return answers

    def decode_batch(
        self,
        prompts: list[list[str]],
        options: GenerationConfig,
        generate_batch: GenerateBatch,
        callback: Callback,
    ) -> list[list[Hypothesis]]:
        """One batch, with a callback for each of its tokens."""
        self._model.seed(options)
        with ct2_errors():
            return generate_batch(prompts, options, callback)

    def batch_options(self, options: GenerationConfig, callback: Callback | None = None) -> dict[str, Any]:
        """Arguments of CTranslate2's calls for a whole batch; the default callback ends answers at stop strings."""
        beam = options.beam_size > 1
        if callback is None and not beam and stop_strings(self._codec, options):
            callback = _stop_callback(self._codec, options)
        return {
            "beam_size": options.beam_size,
            "num_hypotheses": options.n_best,
            "length_penalty": options.alpha if options.length_penalty == "avg" and beam else 0.0,
            "return_scores": True,
            "return_end_token": True,
            "callback": callback,
            **self.search_options(options),
        }

    def search_options(self, options: GenerationConfig) -> dict[str, Any]:
        """Our options under CTranslate2's names and with its sentinels."""
        top_k = max(options.random_sampling_topk, 0)
        max_length, min_length = self._length_names
        return {
            max_length: options.max_length + self.forced,
            min_length: options.min_length + self.forced,
            "sampling_topk": (top_k if top_k < len(self._model.tokens) else 0) if options.samples else 1,
            "sampling_topp": options.random_sampling_topp or 1.0,
            "sampling_temperature": options.random_sampling_temp or 1.0,
            "repetition_penalty": options.repetition_penalty,
            "no_repeat_ngram_size": options.block_ngram_repeat,
            "disable_unk": options.ban_unk_token and self._codec.vocab.unk_id is not None,
            "suppress_sequences": self._banned or None,
            "end_token": end_ids(self._codec, options) or None,
        }

    def hypotheses(
        self, answers: Sequence[Sequence[int]], scores: Sequence[float], options: GenerationConfig
    ) -> list[Hypothesis]:
        """Hypotheses of one prompt from their token ids and CTranslate2's scores, best first."""
        scores = scores or [0.0] * len(answers)
        found = [self.hypothesis(ids, score, options) for ids, score in zip(answers, scores, strict=True)]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)

    def hypothesis(self, ids: Sequence[int], score: float, options: GenerationConfig) -> Hypothesis:
        """One hypothesis, with its score converted to ours."""
        own = list(ids[self.forced :])
        ended = bool(own) and own[-1] in end_ids(self._codec, options)
        answer = own[:-1] if ended else own
        text = answer_text(self._codec, options)
        for token in answer:
            text.push(self._codec.vocab[token])
        text.finish()
        if options.beam_size > 1 and options.length_penalty == "avg":
            score *= max(len(ids), 1) ** options.alpha  # undoes CTranslate2's division
        score /= length_penalty(options)(len(own))
        reason: FinishReason = "stop" if ended or text.stopped else "length"
        return Hypothesis(self._codec.vocab.tokens(answer[: text.token_count]), text.text, score, reason)

    def stream(
        self,
        start: Callable[[Callback], Sequence[Any]],
        options: GenerationConfig,
        should_stop: Callable[[], bool] | None,
    ) -> Iterator[Delta]:
        """Deltas of the first answer of a batch; `start` starts it, with a callback for each of its tokens."""
        self._model.seed(options)
        text, ends = answer_text(self._codec, options), end_ids(self._codec, options)
        with ct2_errors(), closing(_steps(start)) as steps:
            for step in steps:
                if step.step < self.forced:
                    continue
                if step.token_id in ends:
                    yield Delta(text.finish(), 1, "stop")
                    return
                new = text.push(self._codec.vocab[step.token_id])
                if step.is_last and not text.stopped:
                    new += text.finish()
                if text.stopped or step.is_last:
                    yield Delta(new, 1, "stop" if text.stopped else "length")
                    return
                yield Delta(new, 1)
                if should_stop is not None and should_stop():
                    break
        yield Delta(text.finish(), 0, "stopped")


def _steps(start: Callable[[Callback], Sequence[Any]]) -> Generator[Any, None, None]:
    """The steps of the first answer of a batch, as they are computed; closing the iterator ends the batch.

    CTranslate2's own `generate_tokens` waits in another thread of Python, which an interruption leaves behind.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    is_over = threading.Event()

    def callback(step: Any) -> bool:
        if step.batch_id > 0:
            return True
        found.put(step)
        return is_over.is_set() or EXITING.is_set()

    results = start(callback)
    try:
        while not (results[0].done() and found.empty()):
            with suppress(queue.Empty):  # a batch that fails has no further step
                yield found.get(timeout=0.1)
    finally:
        is_over.set()
        for result in results:
            result.result()


def stop_strings(codec: Codec, options: GenerationConfig) -> list[str]:
    """Those of the model and of the options."""
    return [stop for stop in (*codec.stop, *options.stop) if stop]


def answer_text(codec: Codec, options: GenerationConfig) -> AnswerText:
    """The text of an answer that has no tokens yet."""
    return AnswerText(codec.stream_decoder(), stop_strings(codec, options))


def _stop_callback(codec: Codec, options: GenerationConfig) -> Callable[[Any], bool]:
    """A callback that ends an answer at its first stop string, while the batch continues.

    It must not refer to the model: CTranslate2's worker thread drops the callback after the results are out, and a
    model whose last reference goes there waits for the very thread that it runs in.
    """
    texts: dict[tuple[int, int], AnswerText] = {}
    ends = end_ids(codec, options)

    def stops(step: Any) -> bool:
        text = texts.setdefault((step.batch_id, step.hypothesis_id), answer_text(codec, options))
        if step.token_id not in ends:
            text.push(codec.vocab[step.token_id])
        return text.stopped

    return stops
