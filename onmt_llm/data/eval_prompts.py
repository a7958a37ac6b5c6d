"""Validation prompts and reference answers from corpora."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.readers import check_readers
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.transforms.build import undo_all
from onmt_llm.data.transforms.transform import Transform
from onmt_llm.text.codec import Codec
from onmt_llm.text.segment import Segment


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        corpus: Name of its corpus.
        text: The prompt as in the corpus.
        tokens: Input of the model: a source, or the beginning of a text (with BOS).
        reference: The reference answer, detokenised.
        transforms: Transforms to undo in the model's answer.
        codec: The model's, for the languages of the prompt and its answer.
    """

    corpus: str
    text: str
    tokens: list[str]
    reference: str
    transforms: Sequence[Transform]
    codec: Codec


def read_prompts(spec: PipelineSpec) -> tuple[list[Prompt], int]:
    """All examples of the corpora, in order, and the number of skipped ones.

    An example is left out if it is empty, if a transform drops it, or if a language model is asked nothing in it (no
    part of the text is a prompt). A conversation is asked for its last answer.

    Raises:
        ConfigError, DataError: As in training.
    """
    opened = open_corpora(spec)
    check_readers([corpus.reader for corpus in opened])
    prompts: list[Prompt] = []
    counts = CorpusCounts()
    for corpus in opened:
        prompts += _of_corpus(corpus, counts)
        corpus.reader.close()
    return prompts, counts.read - len(prompts)


def _of_corpus(corpus: Corpus, counts: CorpusCounts) -> Iterator[Prompt]:
    for record in iter(corpus.reader.read, None):
        for example in corpus.examples([record], counts):
            texts = corpus.raw(record)
            if example.part < len(texts) - 1:
                continue
            raw = texts[-1] if texts else None
            question, answer = (example.src, example.tgt) if example.tgt else _split(example.src)
            tokens = side_tokens(question)
            if raw is None or not tokens or not answer:
                continue
            tokens = corpus.codec.framed(tokens)
            reference = _text(raw.tgt) if raw.tgt else undo_all(corpus.transforms, _spoken(answer, corpus))
            yield Prompt(corpus.name, _question_text(raw), tokens, reference.strip(), corpus.transforms, corpus.codec)


def _split(text: list[Segment]) -> tuple[list[Segment], list[Segment]]:
    """The last trained part of a text, and the text before it."""
    end = next((i + 1 for i in reversed(range(len(text))) if text[i].train_on), 0)
    start = end
    while start > 0 and text[start - 1].train_on:
        start -= 1
    return text[:start], text[start:end]


def _spoken(side: Sequence[Segment], corpus: Corpus) -> list[str]:
    """Tokens without the final ones that close an answer."""
    return [token for token in side_tokens(side) if token not in corpus.control_tokens]


def _text(side: Sequence[Segment]) -> str:
    return "".join(segment.text or "" for segment in side)


def _question_text(raw: Example) -> str:
    return _text(raw.src if raw.tgt else _split(raw.src)[0])
