"""The engine that runs our own `Transformer`: any checkpoint or adapter, decoder-only or encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING

import numpy as np
import torch

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.generate import search
from onmt_llm.generate.answer import AnswerText
from onmt_llm.generate.batches import BatchType, make_batches
from onmt_llm.generate.engine import Delta, Hypothesis, check_options, empty_answers, end_ids
from onmt_llm.log import log_once
from onmt_llm.text.features import split_features

if TYPE_CHECKING:
    from onmt_llm.nn.transformer import Transformer
    from onmt_llm.text.codec import Codec

_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_INT8_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
_SCORE_ROWS = 512
"""Positions whose logits are in memory at once when a text is scored."""


class TorchEngine:
    """Answers with a `Transformer`.

    Precedence of the options: `beam_size` > 1 is beam search, and the sampling options are then ignored (said once in
    the log); otherwise `random_sampling_topk: 1` or a temperature of 0 is greedy search; otherwise tokens are drawn:
    temperature, then top-k, then top-p. Repetition penalty, n-gram blocking, minimum length and bans apply to all of
    them.

    Args:
        model: In eval mode, on its device.
        codec: Its vocabulary, tokeniser and template.
    """

    def __init__(self, model: Transformer, codec: Codec) -> None:
        self.model = model
        self._codec = codec
        self._end_ids = tuple(end_ids(codec))

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        compute_type: str = "auto",
        dtype: str | None = None,
        threads: int = 0,
    ) -> TorchEngine:
        """Load a checkpoint, or an adapter with its base; see `open_engine`."""
        from onmt_llm.checkpoint.load import build_model, load_model
        from onmt_llm.checkpoint.store import Checkpoint

        if threads:
            torch.set_num_threads(threads)
        checkpoint = Checkpoint.open(path)
        target = _device(device)
        name = dtype or _dtype_name(compute_type, stored=checkpoint.config.model.dtype, device=target)
        if name not in _DTYPES:
            raise ConfigError(f"The type of the torch engine must be one of {', '.join(_DTYPES)}, but is '{name}'.")
        if compute_type.startswith("int8") and not checkpoint.is_adapter:
            layers = [*_INT8_LAYERS, *(["gate_proj"] if checkpoint.config.model.ffn_gated else [])]
            model = build_model(checkpoint, dtype=_DTYPES[name], device=target, quant_layers=layers, quant_type="int8")
        elif compute_type.startswith("int8"):
            raise UnsupportedError(
                f"compute_type {compute_type} needs a merged checkpoint, but {path} is an adapter.",
                hint="merge it: onmt_llm_lora --action merge",
            )
        else:
            model = load_model(path, dtype=_DTYPES[name], device=target)
        return cls(model.eval(), checkpoint.codec())

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
    ) -> list[list[Hypothesis]]:
        """See `Engine.generate`."""
        check_options(options)
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        seed = _seed(options)
        answers: list[list[Hypothesis]] = [empty_answers(options) for _ in prompts]
        for batch in make_batches([len(prompt) for prompt in ids], batch_size=batch_size, batch_type=batch_type):
            decoding = self._start([ids[place] for place in batch], [prompts[place] for place in batch])
            if options.beam_size > 1:
                found = self._search(decoding, len(batch), options)
            else:
                found = self._sample(decoding, batch, options, seed)
            for place, hypotheses in zip(batch, found, strict=True):
                answers[place] = hypotheses
        return answers

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        """See `Engine.stream`."""
        check_options(options)
        if not prompt:
            yield Delta("", 0, "stop")
        elif options.beam_size > 1:
            best = self.generate([prompt], options)[0][0]
            yield Delta(best.text, len(best.tokens), best.finish_reason)
        else:
            yield from self._stream_sample(prompt, options, should_stop or (lambda: False))

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """See `Engine.score`."""
        scores: list[list[float]] = []
        for place, sequence in enumerate(sequences):
            ids = self._codec.vocab.ids(sequence)
            if len(ids) < 2:
                scores.append([])
                continue
            hidden_TD = self._hidden(ids[:-1], sources[place] if sources is not None else None)
            scores.append(self._token_log_probs(hidden_TD, ids[1:]))
        return scores

    @torch.inference_mode()
    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`."""
        hidden_TD = self._hidden(self._codec.vocab.ids(sequence), source)
        return self.model.logits(hidden_TD[None])[0].float().cpu().numpy()

    def _prompt_ids(self, prompt: Sequence[str]) -> list[int]:
        vocab = self._codec.vocab if self.model.config.is_decoder_only else self._codec.src_vocab
        if self._codec.feature_vocabs:
            prompt = split_features(prompt, len(self._codec.feature_vocabs))[0]
        return vocab.ids(prompt)

    def _features(self, prompt: Sequence[str]) -> list[list[int]]:
        """Ids of the features of each source token."""
        vocabs = self._codec.feature_vocabs
        columns = split_features(prompt, len(vocabs))[1:]
        columns_FS = [vocab.ids(column) for vocab, column in zip(vocabs, columns, strict=True)]
        return [list(row) for row in zip(*columns_FS, strict=True)]

    def _start(self, ids: Sequence[Sequence[int]], prompts: Sequence[Sequence[str]]) -> search.Decoding:
        features = [self._features(prompt) for prompt in prompts] if self._codec.feature_vocabs else None
        return search.Decoding(self.model, ids, start_id=self._codec.vocab.bos_id, features=features)

    def _rules(self, options: GenerationConfig) -> search.Rules:
        vocab = self._codec.vocab
        # An embedding may have more rows than there are tokens, to make its size a multiple of something.
        banned = list(range(len(vocab), self.model.config.vocab_size))
        if options.ban_unk_token and vocab.unk_id is not None:
            banned.append(vocab.unk_id)
        return search.Rules(
            end_ids=self._end_ids,
            banned_ids=tuple(banned),
            min_length=options.min_length,
            repetition_penalty=options.repetition_penalty,
            ngram=options.block_ngram_repeat,
        )

    def _steps(
        self, decoding: search.Decoding, rows: list[search.Row], options: GenerationConfig
    ) -> Iterator[search.Row]:
        pick: search.Pick = search.pick_best
        if options.samples:
            pick = search.pick_random(
                temperature=options.random_sampling_temp,
                top_k=options.random_sampling_topk,
                top_p=options.random_sampling_topp,
            )
        return search.sample(decoding, rows, rules=self._rules(options), pick=pick, max_length=options.max_length)

    def _sample(
        self, decoding: search.Decoding, places: Sequence[int], options: GenerationConfig, seed: int
    ) -> list[list[Hypothesis]]:
        """Greedy search or sampling of a batch; `places` are the prompts' places in the whole input."""
        rows = [
            search.Row(prompt, random=_random(seed, place, n))
            for prompt, place in enumerate(places)
            for n in range(options.n_best)
        ]
        texts = {id(row): self._answer_text(options) for row in rows}
        for row in self._steps(decoding, rows, options):
            self._read(row, texts[id(row)])
        found: list[list[Hypothesis]] = [[] for _ in places]
        penalty = search.length_penalty(options.length_penalty, options.alpha)
        for row in rows:
            found[row.prompt].append(self._hypothesis(row, texts[id(row)], row.log_prob / penalty(len(row.tokens))))
        return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in found]

    def _search(self, decoding: search.Decoding, num_prompts: int, options: GenerationConfig) -> list[list[Hypothesis]]:
        if options.samples:
            log_once("beam_size is above 1: beam search, without the random_sampling options.")
        found = search.beam_search(
            decoding,
            num_prompts,
            beam_size=options.beam_size,
            rules=self._rules(options),
            max_length=options.max_length,
            penalty=search.length_penalty(options.length_penalty, options.alpha),
            at_stop=self._stop_detector(options),
        )
        return [[self._finished(score, row, options) for score, row in best[: options.n_best]] for best in found]

    @torch.inference_mode()
    def _open_stream(self, prompt: Sequence[str], options: GenerationConfig) -> Iterator[search.Row]:
        rows = [search.Row(0, random=_random(_seed(options), 0, 0))]
        yield from self._steps(self._start([self._prompt_ids(prompt)], [prompt]), rows, options)

    def _stream_sample(
        self, prompt: Sequence[str], options: GenerationConfig, should_stop: Callable[[], bool]
    ) -> Iterator[Delta]:
        text = self._answer_text(options)
        with closing(self._open_stream(prompt, options)) as steps:  # type: ignore[type-var]
            for row in steps:
                new = self._read(row, text)
                if row.finish is not None:
                    yield Delta(new, 1, row.finish)
                    return
                yield Delta(new, 1)
                if should_stop():
                    break
        yield Delta(text.finish(), 0, "stopped")

    def _read(self, row: search.Row, text: AnswerText) -> str:
        """Add the row's newest token to its text; end the row at a stop string. Returns the new text."""
        if row.tokens[-1] in self._end_ids:
            return text.finish()
        new = text.push(self._codec.vocab[row.tokens[-1]])
        if text.stopped:
            row.finish = "stop"
        elif row.finish is not None:
            new += text.finish()
            if text.stopped:
                row.finish = "stop"
        return new

    def _finished(self, score: float, row: search.Row, options: GenerationConfig) -> Hypothesis:
        text = self._answer_text(options)
        for token in self._answer_ids(row):
            text.push(self._codec.vocab[token])
        text.finish()
        return self._hypothesis(row, text, score)

    def _hypothesis(self, row: search.Row, text: AnswerText, score: float) -> Hypothesis:
        tokens = self._codec.vocab.tokens(self._answer_ids(row)[: text.token_count])
        return Hypothesis(tokens, text.text, score, row.finish or "length")

    def _answer_ids(self, row: search.Row) -> list[int]:
        return row.tokens[:-1] if row.tokens and row.tokens[-1] in self._end_ids else row.tokens

    def _answer_text(self, options: GenerationConfig) -> AnswerText:
        return AnswerText(self._codec.stream_decoder(), [*self._codec.stop, *options.stop])

    def _stop_detector(self, options: GenerationConfig) -> Callable[[list[int]], bool]:
        """For beams, which have no running text: whether the last tokens' text holds a stop string."""
        stops = [stop for stop in (*self._codec.stop, *options.stop) if stop]
        # A character takes at most four tokens (its bytes), so this many tokens hold the longest stop string.
        tail = 4 * max(map(len, stops), default=0) + 4

        def at_stop(tokens: list[int]) -> bool:
            if not stops:
                return False
            text = self._codec.decode(self._codec.vocab.tokens(tokens[-tail:]))
            return any(stop in text for stop in stops)

        return at_stop

    @torch.inference_mode()
    def _hidden(self, ids: Sequence[int], source: Sequence[str] | None) -> torch.Tensor:
        if not ids:
            raise DataError("A sequence to be scored must have at least one token, but is empty.")
        device = next(self.model.parameters()).device
        tgt_1T = torch.tensor([list(ids)], device=device)
        if self.model.config.is_decoder_only:
            return self.model.decode(tgt_1T)[0]
        if not source:
            raise DataError("An encoder-decoder model scores a target given its source, but the source is missing.")
        features = torch.tensor([self._features(source)], device=device) if self._codec.feature_vocabs else None
        memory_1SD = self.model.encode(torch.tensor([self._prompt_ids(source)], device=device), features_BSF=features)
        return self.model.decode(tgt_1T, memory_1SD)[0]

    @torch.inference_mode()
    def _token_log_probs(self, hidden_TD: torch.Tensor, targets: Sequence[int]) -> list[float]:
        result: list[float] = []
        for start in range(0, len(targets), _SCORE_ROWS):
            rows = hidden_TD[start : start + _SCORE_ROWS]
            log_probs_TV = self.model.logits(rows[None])[0].float().log_softmax(dim=-1)
            wanted = torch.tensor(targets[start : start + _SCORE_ROWS], device=hidden_TD.device)
            result += log_probs_TV.gather(1, wanted[:, None])[:, 0].tolist()
        return result


def _seed(options: GenerationConfig) -> int:
    return options.seed if options.seed >= 0 else SystemRandom().getrandbits(63)


def _random(seed: int, place: int, number: int) -> Random:
    """The random numbers of one answer: those of prompt `place`, answer `number`, whatever else is in the batch."""
    return Random(f"{seed}/{place}/{number}")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UnsupportedError(
            "device cuda needs an NVIDIA GPU and a CUDA build of torch, but there is none here.", hint="use cpu"
        )
    return name


def _dtype_name(compute_type: str, *, stored: str, device: str) -> str:
    """Type to compute in; fp16 products are an order of magnitude slower than fp32 ones on a CPU."""
    name = compute_type.removeprefix("int8").lstrip("_") or "auto"
    if name not in ("auto", "default"):
        return name
    if stored == "fp16" and device == "cpu":
        log_once("The checkpoint is stored in fp16, which CPUs compute slowly: it runs in fp32 (choose with dtype).")
        return "fp32"
    return stored
