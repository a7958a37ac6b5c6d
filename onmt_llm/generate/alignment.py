"""Alignments of answers to their sources: the Pharaoh format, and replacement of unknown tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onmt_llm.data.readers import read_lines
from onmt_llm.errors import DataError
from onmt_llm.text.decoding import AnswerText

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Hypothesis
    from onmt_llm.text.codec import Codec

SEPARATOR = "|||"
_SPACERS = "▁Ġ"
_JOINER = "￭"


def pharaoh(alignment: Sequence[int]) -> str:
    """`source-target` pairs, positions from 0, in the order of the source."""
    pairs = sorted((source, target) for target, source in enumerate(alignment))
    return " ".join(f"{source}-{target}" for source, target in pairs)


def word_pharaoh(source: Sequence[str], target: Sequence[str], alignment: Sequence[int]) -> str:
    """`source-target` pairs of words instead of tokens, in the order of the source.

    Args:
        source: Tokens of the source, with the marks of their tokeniser (`▁` before a word, or `￭` inside).
        target: Those of the answer.
        alignment: For each of these the place of its source token; places outside the source are left out.
    """
    words, own = word_numbers(source), word_numbers(target)
    pairs = {(words[place], own[i]) for i, place in enumerate(alignment) if 0 <= place < len(words)}
    return " ".join(f"{word}-{answer_word}" for word, answer_word in sorted(pairs))


def word_numbers(tokens: Sequence[str]) -> list[int]:
    """The number of the word that each token belongs to; without marks each token is a word."""
    has_spacers = any(mark in token for token in tokens for mark in _SPACERS)
    numbers: list[int] = []
    previous = ""
    for token in tokens:
        inside = not token.startswith(tuple(_SPACERS)) if has_spacers else _joined(previous, token)
        numbers.append(numbers[-1] + (not inside) if numbers else 0)
        previous = token
    return numbers


def _joined(previous: str, token: str) -> bool:
    return token.startswith(_JOINER) or previous.endswith(_JOINER)


def read_phrase_table(path: str | Path) -> dict[str, str]:
    """A file of `source|||target` lines.

    Raises:
        DataError: A line does not have that form.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        source, separator, target = line.partition(SEPARATOR)
        if not separator:
            raise DataError(
                f"A line of a phrase table must be source{SEPARATOR}target, but {path}:{number} is {line!r}."
            )
        table[source] = target
    return table


def replace_unknown(
    hypothesis: Hypothesis, source: Sequence[str], table: Mapping[str, str], codec: Codec
) -> Hypothesis:
    """The answer with each unknown token replaced by its aligned source token, or by the translation of that.

    Args:
        hypothesis: With its alignment.
        source: Tokens of the source.
        table: Translations of source tokens.
        codec: Has the unknown token, and decodes tokens.
    """
    unknown = codec.config.specials.unk
    if hypothesis.alignment is None or unknown not in hypothesis.tokens:
        return hypothesis
    aligned = [source[place] for place in hypothesis.alignment]
    pairs = zip(hypothesis.tokens, aligned, strict=True)
    tokens = [table.get(theirs, theirs) if token == unknown else token for token, theirs in pairs]
    text = AnswerText(codec.stream_decoder(), [])
    for token in tokens:
        text.push(token)
    text.finish()
    return replace(hypothesis, tokens=tokens, text=text.text)
