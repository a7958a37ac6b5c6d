"""The engine that runs a CTranslate2 release of an encoder-decoder model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.generate.batches import BatchType, make_batches
from onmt_llm.generate.ct2.engine import SCORE_TOKENS, Ct2Engine, ct2_errors
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.generate.lengths import longest_answer
from onmt_llm.generate.support import Feature
from onmt_llm.text.features import SEPARATOR, split_features


class Ct2Translator(Ct2Engine):
    """Answers with a `ctranslate2.Translator`: prompts are sources, answers their translations.

    What `Ct2Engine` says of its options holds here too, but for what it says of long prompts. Beyond that:

    * `score` takes targets as the model is trained on them: they begin with its start token.
    * On a CPU each thread translates a batch of its own: in a beam search much of a step runs on one thread anyway.
    * There are no `logits`: CTranslate2 gives those of translations that it makes itself only.
    """

    _runs: ClassVar[str] = "Translator"
    _at_once: ClassVar[bool] = True
    _length_names: ClassVar[tuple[str, str]] = ("max_decoding_length", "min_decoding_length")

    _supports: ClassVar[frozenset[Feature]] = frozenset({"alpha", "replace_unk", "report_align"})

    def score(
        self, sequences: Sequence[Sequence[str]], *, sources: Sequence[Sequence[str]] | None = None
    ) -> list[list[float]]:
        """See `Engine.score`."""
        known = [self.codec.vocab.tokens(self.codec.vocab.ids(sequence)) for sequence in sequences]
        if sources is None or len(sources) < len(known) or not all(sources):
            raise DataError("An encoder-decoder model scores a target given its source, but the source is missing.")
        places = [place for place, tokens in enumerate(known) if len(tokens) > 1]
        for place in places:
            self._check_start(known[place])
        for texts in (known, sources):
            self._check_lengths(texts)
        with ct2_errors():
            results = self._model.score_batch(
                [self._known(sources[place]) for place in places],
                [self._without_end(known[place][1:]) for place in places],
                max_batch_size=SCORE_TOKENS,
                batch_type="tokens",
                max_input_length=0,
            )
        scores: list[list[float]] = [[] for _ in known]
        for place, result in zip(places, results, strict=True):
            # It scores the end token of every target, whether or not this one has come to its end.
            scores[place] = list(result.log_probs)[: len(known[place]) - 1]
        return scores

    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "CTranslate2 gives no logits of a target that it has not made itself.",
            hint="use score(), or the torch engine",
        )

    def _known(self, tokens: Sequence[str]) -> list[str]:
        if not self.codec.feature_vocabs:
            return self.codec.src_vocab.tokens(self.codec.src_vocab.ids(tokens))
        vocabs = [self.codec.src_vocab, *self.codec.feature_vocabs]
        columns = split_features(tokens, len(vocabs) - 1)
        known = [vocab.tokens(vocab.ids(column)) for vocab, column in zip(vocabs, columns, strict=True)]
        return [SEPARATOR.join(parts) for parts in zip(*known, strict=True)]

    def _batches(
        self, prompts: Sequence[Sequence[str]], options: GenerationConfig, *, batch_size: int, batch_type: BatchType
    ) -> list[list[int]]:
        # CTranslate2 has one limit for a batch, we have one for each source.
        lengths = [len(prompt) for prompt in prompts]
        limited = any(self._limit(options, length) < options.max_length for length in lengths if length)
        return make_batches(lengths, batch_size=batch_size, batch_type=batch_type, same_length=limited)

    @staticmethod
    def _limit(options: GenerationConfig, source_length: int) -> int:
        return longest_answer(options.max_length, options.max_length_ratio, source_length)

    def _limited(self, options: GenerationConfig, source_length: int) -> GenerationConfig:
        limit = self._limit(options, source_length)
        return options.model_copy(update={"max_length": limit, "min_length": min(options.min_length, limit)})

    def _check(self, options: GenerationConfig, *, prefixes: bool = False) -> None:
        super()._check(options, prefixes=prefixes)
        config = self.codec.config
        held = (config.alignment_layer, config.alignment_heads)
        if options.report_align and config.full_context_alignment:
            raise UnsupportedError(
                "A release aligns each token by those before it, but this model was trained with "
                "full_context_alignment.",
                hint="align with the checkpoint",
            )
        asked = options.alignment(*held) if options.report_align else held
        if (options.report_align or options.replace_unk) and self._heads(*asked) != self._heads(*held):
            raise UnsupportedError(
                f"A release has the attention of one alignment layer, here {held[0]} with {held[1]} heads (0 = all), "
                f"but that of {asked[0]} with {asked[1]} is asked for.",
                hint="set alignment_layer and alignment_heads in the checkpoint's config.yaml and release it again",
            )

    def _heads(self, layer: int, heads: int) -> tuple[int, int]:
        model = self.codec.config.model
        return layer % model.decoder_layers, heads or model.heads

    def _beyond_window(self, sequences: Sequence[Sequence[str]]) -> bool:
        return False

    def _generate_batch(self, prompts: list[list[str]], options: GenerationConfig) -> list[list[Hypothesis]]:
        options = self._limited(options, max(map(len, prompts)))
        aligns = options.report_align or options.replace_unk
        results = self._model.translate_batch(
            prompts, max_input_length=0, return_attention=aligns, **self._batch_options(options)
        )
        return [self._read(result, options, aligns=aligns) for result in results]

    def _read(self, result: Any, options: GenerationConfig, *, aligns: bool) -> list[Hypothesis]:
        answers = [self.codec.vocab.ids(tokens) for tokens in result.hypotheses]
        if not aligns:
            return self._hypotheses(answers, result.scores, options)
        found = []
        for ids, score, attention in zip(answers, result.scores, result.attention, strict=True):
            (hypothesis,) = self._hypotheses([ids], [score], options)
            places = tuple(int(np.argmax(row)) for row in attention[: len(hypothesis.tokens)])
            found.append(replace(hypothesis, alignment=places))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)

    def _open_stream(self, prompt: Sequence[str], options: GenerationConfig) -> Any:
        known = self._known(prompt)
        options = self._limited(options, len(known))
        return self._model.generate_tokens(known, max_input_length=0, **self._search_options(options))

    def _check_start(self, sequence: Sequence[str]) -> None:
        start = self.codec.vocab.specials.bos
        if sequence[0] != start:
            raise DataError(f"A target to be scored must begin with {start!r}, but begins with {sequence[0]!r}.")

    def _without_end(self, tokens: list[str]) -> list[str]:
        return tokens[:-1] if tokens[-1] == self.codec.vocab.specials.eos else tokens
