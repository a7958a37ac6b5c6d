"""The engine that runs a CTranslate2 release of an encoder-decoder model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.generate.ct2.decoding import TRANSLATOR_FEATURES, Callback
from onmt_llm.generate.ct2.engine import Ct2Engine
from onmt_llm.generate.ct2.model import SCORE_TOKENS, ct2_errors
from onmt_llm.generate.engine import ContinuationScore, Hypothesis, check_continuations, check_sources
from onmt_llm.generate.lengths import BatchType, make_batches, max_answer_length
from onmt_llm.text.features import SEPARATOR, split_features


class Ct2Translator(Ct2Engine):
    """Answers with a `ctranslate2.Translator`: prompts are sources, answers their translations.

    The limits in `Ct2Generator` hold here too, except for those of long prompts. In addition:

    * `score` takes targets as the model is trained on them: they begin with its start token.
    * On a CPU each thread translates its own batch: much of a beam search's step runs on one thread anyway.
    * There are no `logits`: CTranslate2 returns only those of its own translations.

    Args:
        model: The loaded release.
        codec: Its vocabularies, tokenisers and template.
    """

    kind = "Translator"
    features = TRANSLATOR_FEATURES
    length_names = ("max_decoding_length", "min_decoding_length")
    batch_per_thread = True

    def batch_key(self, prompt: Sequence[str], options: GenerationConfig) -> Hashable:
        """See `Ct2Engine.batch_key`: the encoder reads sources of any lengths at once."""
        return None

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """See `Engine.score`."""
        check_sources(self._codec, sequences, sources)
        assert sources is not None
        known = [self._codec.vocab.tokens(self._codec.vocab.ids(sequence)) for sequence in sequences]
        places = [place for place, tokens in enumerate(known) if len(tokens) > 1]
        for place in places:
            self._check_start(known[place])
        has_start = self._codec.fixed_start is not None  # else CTranslate2 takes the first token of the target
        for texts in (known, sources):
            self._decoding.check_lengths(texts)
        with ct2_errors():
            results = self._model.handle.score_batch(
                [self._known(sources[place]) for place in places],
                [self._without_end(known[place][has_start:]) for place in places],
                max_batch_size=SCORE_TOKENS,
                batch_type="tokens",
                max_input_length=0,
            )
        scores: list[list[float]] = [[] for _ in known]
        for place, result in zip(places, results, strict=True):
            # CTranslate2 scores the end token of every target, even of one without it.
            scores[place] = list(result.log_probs)[: len(known[place]) - 1]
        return scores

    def score_continuations(
        self, contexts: Sequence[Sequence[str]], continuations: Sequence[Sequence[str]]
    ) -> list[ContinuationScore]:
        """See `Engine.score_continuations`.

        Raises:
            UnsupportedError: Always.
        """
        check_continuations(self._codec, contexts, continuations)
        raise AssertionError("a translator is an encoder-decoder")

    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "CTranslate2 gives no logits of a target that it has not made itself.",
            hint="use score(), or the torch engine",
        )

    def _batches(
        self, prompts: Sequence[Sequence[str]], options: GenerationConfig, *, batch_size: int, batch_type: BatchType
    ) -> list[list[int]]:
        # CTranslate2 has one limit per batch, we have one per source.
        lengths = [len(prompt) for prompt in prompts]
        limited = any(_limit(options, length) < options.max_length for length in lengths if length)
        return make_batches(lengths, batch_size=batch_size, batch_type=batch_type, same_length=limited)

    def _answer_batch(
        self, prompts: list[list[str]], options: GenerationConfig, callback: Callback | None = None
    ) -> list[list[Hypothesis]]:
        """The limit of all answers is that of the longest source."""
        options = _limited(options, max(map(len, prompts)))
        aligns = options.report_align or options.replace_unk
        results = self._model.handle.translate_batch(
            prompts,
            target_prefix=[self._decoding.prefix] * len(prompts),
            max_input_length=0,
            return_attention=aligns,
            **self._decoding.batch_options(options, callback),
        )
        return [self._read(result, options, aligns=aligns) for result in results]

    def _read(self, result: Any, options: GenerationConfig, *, aligns: bool) -> list[Hypothesis]:
        answers = [self._codec.vocab.ids(tokens) for tokens in result.hypotheses]
        if not aligns:
            return self._decoding.hypotheses(answers, result.scores, options)
        found = []
        for ids, score, attention in zip(answers, result.scores, result.attention, strict=True):
            hypothesis = self._decoding.hypothesis(ids, score, options)
            rows = attention[self._decoding.forced :][: len(hypothesis.tokens)]
            places = tuple(int(np.argmax(row)) for row in rows)
            found.append(replace(hypothesis, alignment=places))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)

    def _start(self, prompt: Sequence[str], options: GenerationConfig, callback: Callback) -> Sequence[Any]:
        known = self._known(prompt)
        return self._model.handle.translate_batch(
            [known],
            target_prefix=[self._decoding.prefix],
            max_input_length=0,
            beam_size=1,
            asynchronous=True,
            callback=callback,
            **self._decoding.search_options(_limited(options, len(known))),
        )

    def _known(self, tokens: Sequence[str]) -> list[str]:
        """The source with unknown tokens and features replaced by our vocabularies' rule."""
        if not self._codec.feature_vocabs:
            return self._codec.src_vocab.tokens(self._codec.src_vocab.ids(tokens))
        vocabs = [self._codec.src_vocab, *self._codec.feature_vocabs]
        columns = split_features(tokens, len(vocabs) - 1)
        known = [vocab.tokens(vocab.ids(column)) for vocab, column in zip(vocabs, columns, strict=True)]
        return [SEPARATOR.join(parts) for parts in zip(*known, strict=True)]

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
        self._decoding.check_lengths(prompts, places)
        config = self._codec.config
        stored = (config.alignment_layer, config.alignment_heads)
        if options.report_align and config.full_context_alignment:
            raise UnsupportedError(
                "A release aligns each token by the tokens before it, but this model was trained with "
                "full_context_alignment.",
                hint="align with the checkpoint",
            )
        wanted = options.alignment(*stored) if options.report_align else stored
        if (options.report_align or options.replace_unk) and self._heads(*wanted) != self._heads(*stored):
            raise UnsupportedError(
                f"A release has the attention of one alignment layer, here {stored[0]} with {stored[1]} heads (0 = "
                f"all), but that of {wanted[0]} with {wanted[1]} is requested.",
                hint="set alignment_layer and alignment_heads in the checkpoint's config.yaml and release it again",
            )

    def _heads(self, layer: int, heads: int) -> tuple[int, int]:
        model = self._codec.config.model
        return layer % model.decoder_layers, heads or model.heads

    def _check_start(self, sequence: Sequence[str]) -> None:
        start = self._codec.start_tokens[0]
        if sequence[0] != start:
            raise DataError(f"A target to be scored must begin with {start!r}, but begins with {sequence[0]!r}.")

    def _without_end(self, tokens: list[str]) -> list[str]:
        return tokens[:-1] if tokens[-1] == self._codec.vocab.specials.eos else tokens


def _limit(options: GenerationConfig, source_length: int) -> int:
    return max_answer_length(options, source_length)


def _limited(options: GenerationConfig, source_length: int) -> GenerationConfig:
    limit = _limit(options, source_length)
    return options.model_copy(update={"max_length": limit, "min_length": min(options.min_length, limit)})
