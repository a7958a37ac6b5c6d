"""`terminology`: insert the translations of terms into the source, to teach a model to use a given terminology.

With spaCy models, terms are matched by their lemmas and the lemma of the translation is inserted, which the model
learns to inflect (Bergmanis and Pinnis 2021, https://aclanthology.org/2021.eacl-main.271). Without, they are matched
literally but case-insensitively.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Fraction
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.augment import Augment, read_pairs, set_source, source_text
from onmt_llm.data.transforms.inlinetags import TagSpan, with_tags
from onmt_llm.data.transforms.phrases import Analyse, Phrases, Word, folded_words, locate
from onmt_llm.data.transforms.transform import TRANSFORMS, TransformContext
from onmt_llm.errors import ConfigError
from onmt_llm.optional import require


class TerminologyConfig(Section):
    """Options of `terminology`: add the translations of terms to the source."""

    termbase_path: str | None = None
    """Term base: lines `source<TAB>target`."""
    src_spacy_language_model: str | None = None
    """spaCy model of the source language, by name or folder; null = terms are matched literally."""
    tgt_spacy_language_model: str | None = None
    """spaCy model of the target language; required if that of the source is set."""
    term_corpus_ratio: Fraction = 0.3
    """Training: fraction of examples that get terms; outside training, all that have some do."""
    term_example_ratio: Fraction = 0.2
    """Maximum number of terms in an example, as a fraction of its words."""
    src_term_stoken: str = "｟src_term_start｠"
    """Token before a term."""
    tgt_term_stoken: str = "｟tgt_term_start｠"
    """Token between a term and its translation."""
    tgt_term_etoken: str = "｟tgt_term_end｠"
    """Token after the translation."""
    term_source_delimiter: str = Field("｟fuzzy｠", min_length=1)
    """Delimiter between a source and its fuzzy match, which gets no terms."""


@dataclass(frozen=True)
class Language:
    """How the words of a language are compared.

    Attributes:
        analyse: Splits a text into words.
        stop_words: Words that are not used as terms.
        lemmatises: Whether words are compared by lemma.
    """

    analyse: Analyse
    stop_words: Collection[str] = ()
    lemmatises: bool = False

    def base_form(self, term: str) -> str:
        return " ".join(word.key for word in self.analyse(term)) if self.lemmatises else term


@TRANSFORMS.register("terminology")
class Terminology(Augment[TerminologyConfig]):
    """Inserts translations after terms.

    If the target is known, only terms whose translation occurs in it are marked.

    Args:
        terms: Terms and their translations.
        src: Language of the source.
        tgt: Language of the target.
        config: Special tokens and the maximum number of terms.
        training: Whether this is training.
    """

    section = "terminology"
    Config = TerminologyConfig
    at_inference = True

    def __init__(
        self,
        terms: Sequence[tuple[str, str]],
        *,
        src: Language,
        tgt: Language,
        config: TerminologyConfig,
        training: bool,
    ) -> None:
        super().__init__(ratio=config.term_corpus_ratio, training=training)
        self._src = src
        self._tgt = tgt
        self._config = config
        self._phrases = Phrases(
            (
                (term, tgt.base_form(translation))
                for term, translation in terms
                if src.base_form(term).lower() not in src.stop_words
                and tgt.base_form(translation).lower() not in tgt.stop_words
            ),
            src.analyse,
        )

    @classmethod
    def build(cls, config: TerminologyConfig, corpus: CorpusConfig, context: TransformContext) -> Terminology:
        src, tgt = config.src_spacy_language_model, config.tgt_spacy_language_model
        if bool(src) != bool(tgt):
            raise ConfigError(
                f"src_spacy_language_model must be given with tgt_spacy_language_model, but they are {src} and {tgt}."
            )
        return cls(
            read_pairs(config.termbase_path, option="termbase_path"),
            src=open_language(src),
            tgt=open_language(tgt),
            config=config,
            training=context.training,
        )

    @classmethod
    def added_tokens(cls, config: TerminologyConfig, corpus: CorpusConfig) -> list[str]:
        return [config.src_term_stoken, config.tgt_term_stoken, config.tgt_term_etoken]

    def augment(self, examples: Sequence[Example], *, limit: int) -> int:
        return sum(self._mark(example) for example in examples)

    def _mark(self, example: Example) -> bool:
        config = self._config
        source, delimiter, match = source_text(example).partition(config.term_source_delimiter)
        words = self._src.analyse(source)
        target = " ".join(segment.text or "" for segment in example.tgt)
        answer = self._tgt.analyse(target) if example.tgt else None
        spans: list[TagSpan] = []
        for found in self._phrases.find(source):
            translation = found.entry[1]
            if len(spans) >= int(len(words) * config.term_example_ratio):
                break
            if answer is None or self._stands_in(translation, answer):
                behind = f"{config.tgt_term_stoken} {translation} {config.tgt_term_etoken}"
                spans.append((found.start, found.end, config.src_term_stoken, behind))
        if spans:
            set_source(example, with_tags(source, spans) + delimiter + match)
        return bool(spans)

    def _stands_in(self, translation: str, answer: Sequence[Word]) -> bool:
        if self._tgt.lemmatises:
            # already lemmas: some would change if they were lemmatised again
            phrase = [Word(0, 0, lemma) for lemma in translation.lower().split()]
            return locate(phrase, [Word(word.start, word.end, word.key.lower()) for word in answer]) is not None
        return locate(self._tgt.analyse(translation), answer) is not None


def open_language(model: str | None) -> Language:
    """Open a language with its spaCy model; None = words are compared without lemmas, case-insensitively.

    Raises:
        ConfigError: The model is not installed.
        UnsupportedError: spaCy is not installed.
    """
    if model is None:
        return Language(folded_words)
    spacy = require("spacy", "src_spacy_language_model")
    try:
        pipeline = spacy.load(model, disable=["parser", "ner"])
    except OSError as error:
        raise ConfigError(
            f"src_ and tgt_spacy_language_model must name installed spaCy models, but {model} is not one.",
            hint=f"python -m spacy download {model}",
        ) from error
    return Language(partial(_lemmas, pipeline), pipeline.Defaults.stop_words, lemmatises=True)


def _lemmas(pipeline: Any, text: str) -> list[Word]:
    words = (token for token in pipeline(text) if not token.is_space)
    return [Word(token.idx, token.idx + len(token), token.lemma_ or token.text) for token in words]
