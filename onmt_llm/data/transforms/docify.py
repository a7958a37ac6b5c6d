"""`docify`: join successive lines into documents, for models that translate with context.

Lines of a document are joined by line breaks (`｟newline｠` in a corpus file). Only adjacent lines are joined: an empty
or skipped line ends a document, and so does the end of a bucket, so no state is kept between buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Length, LengthOrZero
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, num_tokens, words
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext, kept_whole
from onmt_llm.text.placeholders import NEWLINE as NEWLINE_TOKEN
from onmt_llm.text.segment import Segment, tokenize_segments
from onmt_llm.text.tokenizers.base import Tokenizer

NEWLINE = "\n"


class DocifyConfig(Section):
    """Options of `docify`: join consecutive lines into documents."""

    doc_length: Length = 200
    """Maximum length of a document on its longer side, in tokens (in words if `docify` precedes the tokeniser); a
    longer line is a document of its own."""
    max_context: LengthOrZero = 1
    """Maximum number of lines to append to the first one; 0 = do not join lines."""


@dataclass
class _Document:
    """A document that may still grow."""

    example: Example
    lines: int
    last_line: int
    size: tuple[int, int]


@TRANSFORMS.register("docify")
class Docify(Transform[DocifyConfig]):
    """Joins lines; the first example of a document is kept, the others are counted as `merged`.

    Args:
        doc_length: Maximum tokens in a document.
        max_context: Maximum line breaks in it.
        newline: Tokens of a line break on either side, for tokenised examples.
    """

    section = "docify"
    Config = DocifyConfig
    rewrites = True
    needs_neighbours = True
    at_inference = True

    def __init__(
        self, *, doc_length: int, max_context: int, newline: tuple[list[str], list[str]] = ([NEWLINE], [NEWLINE])
    ) -> None:
        super().__init__()
        self.doc_length = doc_length
        self.max_context = max_context
        self.newline = newline

    @classmethod
    def build(cls, config: DocifyConfig, corpus: CorpusConfig, context: TransformContext) -> Docify:
        sides = (context.src_tokenizer or context.tokenizer, context.tokenizer)
        newline = tuple(newline_tokens(tokenizer) if tokenizer else [NEWLINE] for tokenizer in sides)
        return cls(doc_length=config.doc_length, max_context=config.max_context, newline=(newline[0], newline[1]))

    @classmethod
    def fixed_tokens(cls, config: DocifyConfig, tokenizers: Sequence[Tokenizer], *, on_tokens: bool) -> list[str]:
        return kept_whole([NEWLINE_TOKEN], tokenizers) if config.max_context else []

    def __call__(self, example: Example) -> Example | None:
        return example

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        if self.max_context == 0:
            return list(examples)
        documents: list[_Document] = []
        for example in examples:
            if documents and self._follows(example, documents[-1]):
                self._join(documents[-1], example)
            else:
                documents.append(_Document(example, 1, example.line, _size(example)))
        return [document.example for document in documents]

    def _follows(self, example: Example, document: _Document) -> bool:
        if example.path != document.example.path or example.line != document.last_line + 1:
            return False
        if document.lines > self.max_context:
            return False
        size = _size(example)
        # counted as in OpenNMT-py: line breaks in the document, without the one before this line
        grown = (had + document.lines - 1 + new for had, new in zip(document.size, size, strict=True))
        return max(grown) <= self.doc_length

    def _join(self, document: _Document, example: Example) -> None:
        size = _size(example)
        held = document.example
        held.src = _joined(held.src, example.src, self.newline[0])
        held.tgt = _joined(held.tgt, example.tgt, self.newline[1])
        document.size = (document.size[0] + size[0], document.size[1] + size[1])
        document.lines += 1
        document.last_line = example.line
        self.dropped["merged"] += 1


def newline_tokens(tokenizer: Tokenizer) -> list[str]:
    """The tokens of a line break in the middle of a text."""
    return tokenize_segments(tokenizer, [Segment("a"), Segment(NEWLINE), Segment("a")])[1]


def _size(example: Example) -> tuple[int, int]:
    """Tokens of either side; words where it is not tokenised yet."""
    return num_tokens(example.src, words), num_tokens(example.tgt, words)


def _joined(before: list[Segment], after: list[Segment], newline: list[str]) -> list[Segment]:
    """Join two lines of a side; into one segment if both are trained or both are not."""
    if not (before and after):
        return before or after
    last, first = before[-1], after[0]
    if last.text is None or first.text is None:
        return [*before, Segment(tokens=list(newline), train_on=first.train_on), *after]
    if last.train_on != first.train_on:
        return [*before, Segment(f"{NEWLINE}{first.text}", train_on=first.train_on), *after[1:]]
    return [*before[:-1], Segment(f"{last.text}{NEWLINE}{first.text}", train_on=last.train_on), *after[1:]]
