"""The engine that runs our own `Transformer`: any checkpoint or adapter, decoder-only or encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING

import numpy as np
import torch

from onmt_llm.config.generate import ALL_FEATURES, SOURCE_FEATURES, GenerationConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.engine import (
    ContinuationScore,
    Delta,
    Hypothesis,
    as_paths,
    check_continuations,
    check_options,
    check_positions,
    check_sources,
    check_supported,
    empty_answers,
)
from onmt_llm.generate.lengths import BatchType, make_batches
from onmt_llm.generate.search import sampling as search
from onmt_llm.generate.search.beam import beam_search, coverage_penalty
from onmt_llm.generate.search.state import Decoding, PromptIds
from onmt_llm.generate.torch.answers import Answer, finished_answers, stop_detector
from onmt_llm.generate.torch.continuations import ContinuationScorer
from onmt_llm.generate.torch.ensemble import Ensemble
from onmt_llm.generate.torch.lookup import DraftedDecoding, with_lookup
from onmt_llm.generate.torch.prefill import PromptReader
from onmt_llm.generate.torch.prefix import PrefixCache
from onmt_llm.log import log_once
from onmt_llm.nn.cpu.openmp import watch
from onmt_llm.nn.device import available_memory, resolve_device

if TYPE_CHECKING:
    from onmt_llm.nn.transformer import Transformer
    from onmt_llm.text.codec import Codec

_SCORE_TOKENS = 2048
"""Positions, padding included, of a batch of scored texts."""
_SCORE_TOKENS_CPU = 512
"""The same on a CPU, where larger batches are no faster, but have more padding."""


class TorchEngine:
    """Answers with a `Transformer`, or with an ensemble of them.

    Precedence of the options: `beam_size` > 1 is beam search, which ignores the sampling options (logged once);
    otherwise `random_sampling_topk: 1` or a temperature of 0 is greedy search; otherwise tokens are drawn: temperature,
    then top-k, then top-p. Penalties of tokens, n-gram blocking, minimum length and bans apply to all of them.

    Beam search gives the hypotheses and scores of OpenNMT-py 3.5.1.

    Args:
        model: In eval mode, on its device.
        codec: Its vocabulary, tokeniser and template.
        others: Further models of the ensemble.
        average_probabilities: Average the models' probabilities instead of log probabilities.
        prefix_cache: Bytes for the keys and values of earlier prompts (`PrefixCache`); 0 = none, as it must be where
            the weights change.
        prompt_lookup: Guess the tokens of an answer that is computed alone (`lookup.py`).
        static_steps: Take steps of one token in memory of a fixed size, with CUDA graphs on a GPU
            (`search/static_step.py`).

    Attributes:
        model: The (first) model.
        ensemble: All models as one.
        prefixes: The keys and values of earlier prompts.
    """

    def __init__(
        self,
        model: Transformer,
        codec: Codec,
        *,
        others: Sequence[Transformer] = (),
        average_probabilities: bool = False,
        prefix_cache: int = 0,
        prompt_lookup: bool = False,
        static_steps: bool = False,
    ) -> None:
        self.model = model
        self._codec = codec
        self.prefixes = PrefixCache(prefix_cache) if prefix_cache else None
        self.ensemble = Ensemble(
            (model, *others), codec, average_probabilities=average_probabilities, static_steps=static_steps
        )
        self._prompt_lookup = prompt_lookup

    @classmethod
    def open(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        device: str = "auto",
        compute_type: str = "auto",
        dtype: str | None = None,
        threads: int = 0,
        prefix_cache: int = 0,
        cuda_graphs: bool = False,
        **answering: bool,
    ) -> TorchEngine:
        """Load checkpoints, or adapters with their bases; see `open_engine`. `answering` goes to the constructor."""
        from onmt_llm.generate.torch.loading import load_models

        if threads:
            torch.set_num_threads(threads)
        target = resolve_device(device)
        watch(target.type)
        models, codec = load_models(as_paths(path), device=target, compute_type=compute_type, dtype=dtype)
        return cls(
            models[0],
            codec,
            others=models[1:],
            prefix_cache=prefix_cache * 2**20,
            static_steps=cuda_graphs and target.type == "cuda",
            **answering,
        )

    def for_languages(self, src: str = "", tgt: str = "") -> TorchEngine:
        """See `Engine.for_languages`."""
        engine = copy(self)
        engine._codec = self._codec.for_languages(src, tgt)
        engine.ensemble = self.ensemble.with_codec(engine._codec)
        return engine

    @property
    def codec(self) -> Codec:
        return self._codec

    @torch.inference_mode()
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
        """See `Engine.generate`."""
        self.check(prompts, options, places=places)
        if prefixes is not None and len(prefixes) != len(prompts):
            raise ConfigError(f"'prefixes' must be as many as the prompts, {len(prompts)}, but are {len(prefixes)}.")
        ids = [self.ensemble.prompt_ids(prompt) for prompt in prompts]
        forced = [self._codec.vocab.ids(prefix) for prefix in prefixes] if prefixes is not None else []
        seed = seed_of(options)
        answers: list[list[Hypothesis]] = [empty_answers(options) for _ in prompts]
        for batch in make_batches([len(prompt) for prompt in ids], batch_size=batch_size, batch_type=batch_type):
            self._check_memory(options, prompts=len(batch), length=max(len(ids[place]) for place in batch))
            sources = [ids[place] for place in batch]
            decoding = self.ensemble.start(sources, attention=coverage_penalty(options) is not None)
            prefix_ids = [forced[place] for place in batch] if forced else ()
            constraints = search.build_constraints(
                options, self._codec, self.model.config, prompts=sources, prefixes=prefix_ids
            )
            if uses_beams(options):
                found = self._search(decoding, constraints, options)
            else:
                numbers = [places[place] for place in batch] if places is not None else batch
                alone = len(batch) == options.n_best == 1
                rows: search.Rows = decoding
                if alone:
                    rows = self.with_lookup(decoding, sources[0], max_length=constraints.limit(0))
                found = self._sample(rows, constraints, numbers, options, seed)
            for place, hypotheses in zip(batch, self.aligned(sources, found, options), strict=True):
                answers[place] = hypotheses
        return answers

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        """See `Engine.stream`."""
        self.check([prompt], options)
        if not prompt:
            yield Delta("", 0, "stop")
        elif uses_beams(options):
            yield self.generate([prompt], options)[0][0].as_delta()
        else:
            yield from self._stream_sample(prompt, options, should_stop or (lambda: False))

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """See `Engine.score`."""
        check_sources(self._codec, sequences, sources)
        ids = [self._codec.vocab.ids(sequence) for sequence in sequences]
        for texts in (ids, sources or ()):
            self._check_lengths(texts)
        scores: list[list[float]] = [[] for _ in ids]
        lengths = [len(sequence) - 1 for sequence in ids]
        scored = [max(length, 0) for length in lengths]
        for batch in make_batches(scored, batch_size=self._score_tokens, batch_type="tokens"):
            given = [sources[place] for place in batch] if sources is not None else None
            hidden_MBTD = self.ensemble.hidden([ids[place][:-1] for place in batch], given)
            for row, place in enumerate(batch):
                hidden_MTD = [hidden_BTD[row, : lengths[place]] for hidden_BTD in hidden_MBTD]
                scores[place] = self.ensemble.token_scores(hidden_MTD, ids[place][1:])[0]
        return scores

    def score_continuations(
        self, contexts: Sequence[Sequence[str]], continuations: Sequence[Sequence[str]]
    ) -> list[ContinuationScore]:
        """See `Engine.score_continuations`."""
        check_continuations(self._codec, contexts, continuations)
        self._check_lengths([[*pair[0], *pair[1]] for pair in zip(contexts, continuations, strict=True)])
        ids = [[self._codec.vocab.ids(tokens) for tokens in texts] for texts in (contexts, continuations)]
        return ContinuationScorer(self.ensemble, *ids, batch_tokens=self._score_tokens).score()

    @property
    def _score_tokens(self) -> int:
        return _SCORE_TOKENS_CPU if self.ensemble.device.type == "cpu" else _SCORE_TOKENS

    @torch.inference_mode()
    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`; those of an ensemble are log probabilities."""
        if not sequence:
            raise DataError("A sequence to be scored must have at least one token, but is empty.")
        sources = None if source is None else [source]
        check_sources(self._codec, [sequence], sources)
        hidden = self.ensemble.hidden([self._codec.vocab.ids(sequence)], sources)
        return self.ensemble.logits([hidden_BTD[0] for hidden_BTD in hidden]).cpu().numpy()

    def check(
        self, prompts: Sequence[Sequence[str]], options: GenerationConfig, *, places: Sequence[int] | None = None
    ) -> None:
        """Refuse what this model cannot do; `places` as in `generate`.

        Raises:
            ConfigError: The options contradict each other, or need another kind of model.
            DataError: A prompt is too long.
        """
        check_options(options)
        if self.model.config.is_decoder_only:
            check_supported(
                options.requested_features(),
                ALL_FEATURES - SOURCE_FEATURES,
                engine="a decoder-only model",
                hint="only an encoder-decoder model attends to a source",
            )
        self._check_lengths(prompts, places)

    def with_lookup(self, decoding: Decoding, ids: PromptIds, *, max_length: int) -> DraftedDecoding | Decoding:
        """A decoding of one row, with guesses if this engine makes them; arguments as in `lookup.with_lookup`."""
        if not self._prompt_lookup:
            return decoding
        return with_lookup(decoding, ids, config=self.model.config, max_length=max_length)

    def _check_lengths(self, texts: Sequence[Sequence[object]], places: Sequence[int] | None = None) -> None:
        config = self.model.config
        lengths = [len(text) for text in texts]
        check_positions(lengths, config, has_table=config.position == "learned", places=places)

    def _check_memory(self, options: GenerationConfig, *, prompts: int, length: int) -> None:
        """Refuse a batch that does not fit into memory even at its first step; the estimate is a lower bound.

        Raises:
            ConfigError: There are too many beams, samples or prompts.
        """
        config = self.model.config
        free = available_memory() if self.ensemble.device.type == "cpu" else None
        kept = self.ensemble.bytes_per_token
        read = length if config.is_decoder_only else 1
        rows = prompts * (options.beam_size if uses_beams(options) else options.n_best)
        # logits and their log probabilities are float32
        needed = rows * (2 * 4 * config.vocab_size + kept * read)
        if free is not None and needed > free:
            raise ConfigError(
                f"beam_size and n_best must leave {prompts} inputs room in memory, but their {rows} hypotheses need "
                f"{needed / 2**30:.1f} GiB at once, and {free / 2**30:.1f} GiB are free.",
                hint="lower beam_size, n_best or batch_size",
            )

    def _sample(
        self,
        decoding: search.Rows,
        constraints: search.Constraints,
        places: Sequence[int],
        options: GenerationConfig,
        seed: int,
    ) -> list[list[Hypothesis]]:
        """Greedy search or sampling of a batch; `places` are the places of its prompts in the whole input."""
        rows = [
            search.DecodingRow(prompt, random=random_numbers(seed, place, n))
            for prompt, place in enumerate(places)
            for n in range(options.n_best)
        ]
        answers = {id(row): Answer(row, self._codec, options) for row in rows}
        for row in search.sample(decoding, rows, options=options, constraints=constraints):
            answers[id(row)].read()
        found: list[list[Hypothesis]] = [[] for _ in places]
        for row in rows:
            found[row.prompt].append(answers[id(row)].hypothesis())
        return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in found]

    def _search(
        self, decoding: Decoding, constraints: search.Constraints, options: GenerationConfig
    ) -> list[list[Hypothesis]]:
        if options.samples:
            log_once("beam_size is above 1: beam search ignores the random_sampling options.")
        at_stop = stop_detector(self._codec, options)
        found = beam_search(decoding, options=options, constraints=constraints, at_stop=at_stop)
        return [finished_answers(best, self._codec, options) for best in found]

    def aligned(
        self, sources: Sequence[PromptIds], found: list[list[Hypothesis]], options: GenerationConfig
    ) -> list[list[Hypothesis]]:
        """The answers to each source, with alignments if the options need them: from the attention in a second pass
        over all of them."""
        if not (options.report_align or options.replace_unk) or not any(found):
            return found
        owners = [source for source, hypotheses in zip(sources, found, strict=True) for _ in hypotheses]
        answers = [hypothesis for hypotheses in found for hypothesis in hypotheses]
        # Without an alignment layer to report, unknown tokens follow the last layer's first head, as in OpenNMT-py.
        config = self._codec.config
        trained = (config.alignment_layer, config.alignment_heads)
        places = self.ensemble.align(
            owners,
            [answer.tokens for answer in answers],
            align=options.alignment(*trained) if options.report_align else (-1, 1),
            full_context=options.report_align and config.full_context_alignment,
        )
        aligned = iter(
            replace(answer, alignment=tuple(row[: len(answer.tokens)]))
            for answer, row in zip(answers, places, strict=True)
        )
        return [[next(aligned) for _ in hypotheses] for hypotheses in found]

    @torch.inference_mode()
    def _open_stream(
        self, prompt: Sequence[str], options: GenerationConfig, should_stop: Callable[[], bool]
    ) -> Iterator[search.DecodingRow]:
        row = search.DecodingRow(0, random=random_numbers(seed_of(options), 0, 0))
        ids = self.ensemble.prompt_ids(prompt)
        constraints = search.build_constraints(options, self._codec, self.model.config, prompts=[ids])
        reader = PromptReader(self.ensemble, ids, prefixes=self.prefixes)
        try:
            reader.step()
            while not reader.is_done:
                if should_stop():
                    return
                reader.step()
            decoding = self.with_lookup(reader.decoding, ids, max_length=constraints.limit(0))
            yield from search.sample(decoding, [row], options=options, constraints=constraints)
        finally:
            reader.keep(row.tokens)

    def _stream_sample(
        self, prompt: Sequence[str], options: GenerationConfig, should_stop: Callable[[], bool]
    ) -> Iterator[Delta]:
        answer: Answer | None = None
        with closing(self._open_stream(prompt, options, should_stop)) as steps:  # type: ignore[type-var]
            for row in steps:
                answer = answer or Answer(row, self._codec, options)
                new = answer.read()
                if row.finish is not None:
                    yield Delta(new, 1, row.finish)
                    return
                yield Delta(new, 1)
                if should_stop():
                    break
        yield Delta(answer.finish() if answer else "", 0, "stopped")


def uses_beams(options: GenerationConfig) -> bool:
    """Whether to use beam search: also for a coverage penalty with a beam of one."""
    return options.beam_size > 1 or (options.coverage_penalty != "none" and not options.samples)


def seed_of(options: GenerationConfig) -> int:
    """The seed of the options, or a new one."""
    return options.seed if options.seed >= 0 else SystemRandom().getrandbits(63)


def random_numbers(seed: int, place: int, number: int) -> Random:
    """Random numbers of one answer: they depend on its prompt's place and its number, not on the batch."""
    return Random(f"{seed}/{place}/{number}")
