"""The engine that runs a CTranslate2 release of a decoder-only model; `ct2_translator` builds on it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onmt_llm.checkpoint.damage import refuse_damage
from onmt_llm.checkpoint.files.manifest import CT2_MODEL_FILE, open_directory
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import CheckpointError, DataError, UnsupportedError
from onmt_llm.generate.answer import AnswerText
from onmt_llm.generate.batches import BatchType, make_batches
from onmt_llm.generate.engine import (
    TARGET_VOCABULARIES,
    Delta,
    FinishReason,
    Hypothesis,
    check_options,
    check_positions,
    empty_answers,
    end_ids,
)
from onmt_llm.generate.lengths import length_penalty
from onmt_llm.generate.support import Feature, asked_features, check_supported
from onmt_llm.log import log_once, logger
from onmt_llm.optional import require

if TYPE_CHECKING:
    from typing_extensions import Self

    from onmt_llm.text.codec import Codec

REPORT_FILE = "release_report.json"
SCORE_TOKENS = 512
_RUNS_AS = {"int8": "int8_float32"}
"""Two names of one type."""


class Ct2Engine:
    """Answers with a `ctranslate2.Generator`.

    The options mean what they mean in the torch engine, with these limits of CTranslate2:

    * `beam_size` > 1 with `random_sampling_topk` other than 1 is a beam search whose continuations are drawn at random;
      where that is not wanted, set `random_sampling_topk: 1`.
    * What `_supports` does not name is refused; `length_penalty: wu` without a beam only scales the score.
    * Beams end by CTranslate2's own rule, and by its own measure of length; the scores are brought to ours.
    * What is banned (`min_length`, `ban_unk_token`, repeated n-grams) leaves its probability to the other tokens.
    * `seed`: CTranslate2 seeds a thread when the thread first draws. So a seeded call repeats exactly when it is the
      same call (same prompts, same `batch_size`), and the model is loaded again for every seeded call after the first.
    * With a sliding window, a prompt that is longer is read in blocks of the window's size, each of which sees all of
      the block before it: more than the model was trained to see. The log says so once. Such a text cannot be scored.
    * In beam search a stop string cuts the finished answer instead of ending the search.

    Args:
        directory: Release with `model.bin`, our `config.yaml`, vocabulary and tokeniser files.
        codec: Its vocabulary, tokeniser and template.
        device: "cpu", "cuda" or "auto".
        compute_type: CTranslate2's name of a type; "auto" = as stored.
        threads: CPU threads; 0 = the library's default.
    """

    _runs: ClassVar[str] = "Generator"
    """CTranslate2's class for this kind of model."""
    _supports: ClassVar[frozenset[Feature]] = frozenset({"alpha"})
    """What it has of the features that not every engine has."""
    _length_names: ClassVar[tuple[str, str]] = ("max_length", "min_length")
    """What that class calls the limits of an answer."""
    _at_once: ClassVar[bool] = False
    """On a CPU, each thread takes a batch of its own, rather than all of them one batch."""

    def __init__(
        self, directory: Path, codec: Codec, *, device: str = "auto", compute_type: str = "auto", threads: int = 0
    ) -> None:
        self._directory = directory
        self._codec = codec
        self._ct2 = require("ctranslate2", "the CTranslate2 engine")
        on_cpu = device == "cpu" or (device == "auto" and not self._ct2.get_cuda_device_count())
        self._load_options = {
            "device": device,
            "compute_type": compute_type,
            "intra_threads": threads,
        }
        if compute_type == "auto":
            self._load_options["compute_type"] = as_stored(_stored_type(directory), "cpu" if on_cpu else "cuda")
        self._workers = (threads or os.cpu_count() or 1) if self._at_once and on_cpu else 1
        self._model = self._load()
        self._has_drawn = False
        tokens = model_tokens(directory)
        # Rows of the embedding beyond the vocabulary have names of their own in the release; they must never be
        # produced.
        self._filler = [[token] for token in tokens[len(codec.vocab) :]]
        self._vocab_size = len(tokens)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        device: str = "auto",
        compute_type: str = "auto",
        threads: int = 0,
        is_new: bool = False,
    ) -> Self:
        """Load a release; see `open_engine`. One that `is_new` has just been written, and has no manifest yet."""
        from onmt_llm.text.codec import Codec

        if not is_new:
            check_release(directory)
        codec = Codec.open(directory)
        engine = cls(directory, codec, device=device, compute_type=compute_type, threads=threads)
        asked = _stored_type(directory) if compute_type in ("auto", "default") else compute_type
        if asked and _RUNS_AS.get(asked, asked) != _RUNS_AS.get(engine.compute_type, engine.compute_type):
            log_once(
                f"{directory} is {asked}, which the {engine.device} does not run: it runs as {engine.compute_type}."
            )
        return engine

    @property
    def codec(self) -> Codec:
        return self._codec

    @property
    def compute_type(self) -> str:
        """The type that the model really runs in."""
        return str(self._model.compute_type)

    @property
    def device(self) -> str:
        return str(self._model.device)

    def generate(
        self,
        prompts: Sequence[Sequence[str]],
        options: GenerationConfig,
        *,
        batch_size: int = 16,
        batch_type: BatchType = "sents",
        prefixes: Sequence[Sequence[str]] | None = None,
    ) -> list[list[Hypothesis]]:
        """See `Engine.generate`."""
        self._check(options, prefixes=prefixes is not None)
        known = [self._known(prompt) for prompt in prompts]
        self._note_window(known)
        self._check_lengths(known)
        answers: list[list[Hypothesis]] = [empty_answers(options) for _ in prompts]
        self._seed(options)
        batches = self._batches(known, options, batch_size=batch_size, batch_type=batch_type)
        with ct2_errors(), ThreadPoolExecutor(self._workers) as pool:
            results = pool.map(lambda batch: self._generate_batch([known[place] for place in batch], options), batches)
            for batch, found in zip(batches, results, strict=True):
                for place, hypotheses in zip(batch, found, strict=True):
                    answers[place] = hypotheses
        return answers

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        """See `Engine.stream`."""
        self._check(options)
        if not prompt:
            yield Delta("", 0, "stop")
        elif options.beam_size > 1:
            best = self.generate([prompt], options)[0][0]
            yield Delta(best.text, len(best.tokens), best.finish_reason)
        else:
            self._note_window([prompt])
            self._check_lengths([prompt])
            self._seed(options)
            with ct2_errors():
                yield from self._stream(prompt, options, should_stop or (lambda: False))

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """See `Engine.score`."""
        _no_source(sources)
        known = [self._known(sequence) for sequence in sequences]
        self._refuse_beyond_window(known)
        self._check_lengths(known)
        batch = [tokens for tokens in known if len(tokens) > 1]
        with ct2_errors():
            results = iter(
                self._model.score_batch(batch, max_batch_size=SCORE_TOKENS, batch_type="tokens", max_input_length=0)
                if batch
                else []
            )
        return [list(next(results).log_probs) if len(tokens) > 1 else [] for tokens in known]

    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`."""
        _no_source(source)
        if not sequence:
            raise DataError("A sequence to be scored must have at least one token, but is empty.")
        self._refuse_beyond_window([sequence])
        output = self._model.forward_batch([self._codec.vocab.ids(sequence)], return_log_probs=False)
        # The output may live on the GPU, or be half precision, neither of which numpy reads.
        output = output.to_device(self._ct2.Device.cpu).to(self._ct2.DataType.float32)
        return np.array(output, dtype=np.float32)[0]

    def _load(self) -> Any:
        level = self._ct2.get_log_level()
        # CTranslate2's own warning about a replaced type says in three lines what `open` says in one.
        self._ct2.set_log_level(logging.ERROR)
        try:
            options = dict(self._load_options)
            if self._workers > 1:
                options |= {"inter_threads": self._workers, "intra_threads": 1}
            return getattr(self._ct2, self._runs)(str(self._directory), **options)
        except ValueError as error:
            raise UnsupportedError(f"CTranslate2 cannot run {self._directory} as asked: {error}.") from error
        except RuntimeError as error:
            raise CheckpointError(f"CTranslate2 cannot read {self._directory / CT2_MODEL_FILE}: {error}.") from error
        finally:
            self._ct2.set_log_level(level)

    def _check(self, options: GenerationConfig, *, prefixes: bool = False) -> None:
        check_options(options)
        check_supported(
            asked_features(options, prefixes=prefixes),
            self._supports,
            engine=f"the CTranslate2 {self._runs}",
            hint="use the torch engine (a checkpoint instead of the release), or leave it out",
        )

    def _beyond_window(self, sequences: Sequence[Sequence[str]]) -> bool:
        window = self._codec.config.model.sliding_window
        return window is not None and any(len(sequence) > window for sequence in sequences)

    def _note_window(self, prompts: Sequence[Sequence[str]]) -> None:
        if self._beyond_window(prompts):
            log_once("A prompt is longer than sliding_window: CTranslate2 then looks further back than the model does.")

    def _refuse_beyond_window(self, sequences: Sequence[Sequence[str]]) -> None:
        if self._beyond_window(sequences):
            window = self._codec.config.model.sliding_window
            raise UnsupportedError(
                f"CTranslate2 can score at most sliding_window = {window} tokens of this model at once.",
                hint="use the torch engine",
            )

    def _check_lengths(self, texts: Sequence[Sequence[str]]) -> None:
        """The tables of sinusoids have an end in CTranslate2."""
        model = self._codec.config.model
        check_positions([len(text) for text in texts], model, has_table=model.position in ("learned", "sinusoidal"))

    def _batches(
        self, prompts: Sequence[Sequence[str]], options: GenerationConfig, *, batch_size: int, batch_type: BatchType
    ) -> list[list[int]]:
        """Batches in which no prompt changes another one's answer.

        CTranslate2 reads a batch of unequal prompts at once only up to the shortest, and forces the rest token by
        token. Penalties then count the forced tokens, and with a prompt of one token in the batch the others' prompts
        become part of their answers.
        """
        penalties = options.repetition_penalty != 1.0 or options.block_ngram_repeat > 0
        lengths = [len(prompt) for prompt in prompts]
        same_length = penalties or 1 in lengths
        return make_batches(lengths, batch_size=batch_size, batch_type=batch_type, same_length=same_length)

    def _known(self, tokens: Sequence[str]) -> list[str]:
        """The tokens with unknown ones replaced as our vocabulary does it, so that both engines read the same."""
        return self._codec.vocab.tokens(self._codec.vocab.ids(tokens))

    def _search_options(self, options: GenerationConfig) -> dict[str, Any]:
        """Our options in CTranslate2's names and sentinels."""
        top_k = max(options.random_sampling_topk, 0)
        max_length, min_length = self._length_names
        return {
            max_length: options.max_length,
            min_length: options.min_length,
            "sampling_topk": (top_k if top_k < self._vocab_size else 0) if options.samples else 1,
            "sampling_topp": options.random_sampling_topp or 1.0,
            "sampling_temperature": options.random_sampling_temp or 1.0,
            "repetition_penalty": options.repetition_penalty,
            "no_repeat_ngram_size": options.block_ngram_repeat,
            "disable_unk": options.ban_unk_token and self._codec.vocab.unk_id is not None,
            "suppress_sequences": self._filler or None,
            "end_token": end_ids(self._codec, options) or None,
        }

    def _generate_batch(self, prompts: list[list[str]], options: GenerationConfig) -> list[list[Hypothesis]]:
        results = self._model.generate_batch(
            prompts, include_prompt_in_result=False, cache_static_prompt=False, **self._batch_options(options)
        )
        return [self._hypotheses(result.sequences_ids, result.scores, options) for result in results]

    def _batch_options(self, options: GenerationConfig) -> dict[str, Any]:
        """What a whole batch is told besides its prompts."""
        beam = options.beam_size > 1
        return {
            "beam_size": options.beam_size,
            "num_hypotheses": options.n_best,
            "length_penalty": options.alpha if options.length_penalty == "avg" and beam else 0.0,
            "return_scores": True,
            "return_end_token": True,
            "callback": self._watcher({}, options) if not beam and self._stops(options) else None,
            **self._search_options(options),
        }

    def _watcher(self, watched: dict[tuple[int, int], AnswerText], options: GenerationConfig) -> Callable[[Any], bool]:
        """Ends an answer at its first stop string while the batch goes on."""

        ends = end_ids(self._codec, options)

        def watch(step: Any) -> bool:
            text = watched.setdefault((step.batch_id, step.hypothesis_id), self._answer_text(options))
            if step.token_id not in ends:
                text.push(self._codec.vocab[step.token_id])
            return text.stopped

        return watch

    def _hypotheses(
        self, answers: Sequence[Sequence[int]], scores: Sequence[float], options: GenerationConfig
    ) -> list[Hypothesis]:
        scores = scores or [0.0] * len(answers)
        found = [self._hypothesis(ids, score, options) for ids, score in zip(answers, scores, strict=True)]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)

    def _hypothesis(self, ids: Sequence[int], score: float, options: GenerationConfig) -> Hypothesis:
        ended = bool(ids) and ids[-1] in end_ids(self._codec, options)
        answer = list(ids[:-1] if ended else ids)
        text = self._answer_text(options)
        for token in answer:
            text.push(self._codec.vocab[token])
        text.finish()
        if options.beam_size > 1 and options.length_penalty == "avg":
            score *= max(len(ids), 1) ** options.alpha  # what CTranslate2 has divided by
        score /= length_penalty(options.length_penalty, options.alpha)(len(ids))
        reason: FinishReason = "stop" if ended or text.stopped else "length"
        return Hypothesis(self._codec.vocab.tokens(answer[: text.token_count]), text.text, score, reason)

    def _stream(
        self, prompt: Sequence[str], options: GenerationConfig, should_stop: Callable[[], bool]
    ) -> Iterator[Delta]:
        text, ends = self._answer_text(options), end_ids(self._codec, options)
        with closing(self._open_stream(prompt, options)) as steps:
            for step in steps:
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
                if should_stop():
                    break
        yield Delta(text.finish(), 0, "stopped")

    def _open_stream(self, prompt: Sequence[str], options: GenerationConfig) -> Any:
        """CTranslate2's own stream of steps."""
        return self._model.generate_tokens(
            self._known(prompt), cache_static_prompt=False, **self._search_options(options)
        )

    def _seed(self, options: GenerationConfig) -> None:
        """Make the coming call draw by `options.seed`."""
        if not options.samples:
            return
        # Also without a seed: the one set last is the whole process's, and would make this engine's threads repeat it.
        self._ct2.set_random_seed(options.seed % 2**32 if options.seed >= 0 else SystemRandom().getrandbits(31))
        if options.seed >= 0 and (self._has_drawn or self._workers > 1):
            logger.debug("CTranslate2 is loaded again: its threads take a seed only once.")
            self._workers = 1  # which of several threads draws for which batch could not be repeated
            self._model = self._load()
        self._has_drawn = True

    def _stops(self, options: GenerationConfig) -> list[str]:
        return [stop for stop in (*self._codec.stop, *options.stop) if stop]

    def _answer_text(self, options: GenerationConfig) -> AnswerText:
        return AnswerText(self._codec.stream_decoder(), self._stops(options))


@contextmanager
def ct2_errors() -> Iterator[None]:
    """What CTranslate2 complains of while it computes, such as an answer that is longer than its table of positions."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise DataError(f"CTranslate2 cannot answer this: {str(error).rstrip('.')}.") from error


def check_release(directory: Path) -> None:
    """Read all of a release and see that it is as it was written, before ctranslate2 maps it.

    ctranslate2 trusts what stands in model.bin: damage there can corrupt the memory of the process. So it is not used
    even where damage is ignored.

    Raises:
        CheckpointError: It is not.
    """
    _, manifest = open_directory(directory)
    if manifest is not None:
        refuse_damage(directory, manifest.problems(lambda name: name == CT2_MODEL_FILE), always=True)


def _no_source(source: object) -> None:
    if source:
        raise UnsupportedError("A CTranslate2 release holds a decoder-only model, which has no source side.")


def model_tokens(directory: Path) -> list[str]:
    """The (target) vocabulary that CTranslate2 reads, in id order."""
    files = [directory / name for name in TARGET_VOCABULARIES]
    file = next((file for file in files if file.is_file()), files[0])
    try:
        return [str(token) for token in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} must be a JSON list of tokens, but cannot be read so ({error}).") from error


def as_stored(quantization: str | None, device: str) -> str:
    """CTranslate2's name of the type that a release of this quantisation is to run in.

    Its own "auto" means the fastest type, which would quantise a float32 release without being asked; its "default"
    makes int8 of int16 where that does not run, and computes nonsense with it (4.8.5).
    """
    supported = require("ctranslate2", "the CTranslate2 engine").get_supported_compute_types(device)
    return "float32" if quantization == "int16" and "int16" not in supported else "default"


def _stored_type(directory: Path) -> str | None:
    """The quantisation that a release was made with, as its report says; None for a release of another program."""
    try:
        return json.loads((directory / REPORT_FILE).read_text(encoding="utf-8")).get("quantization")
    except (OSError, ValueError, AttributeError):
        return None
