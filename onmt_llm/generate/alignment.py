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


def pharaoh(alignment: Sequence[int]) -> str:
    """`source-target` pairs, positions from 0, in the order of the source."""
    pairs = sorted((source, target) for target, source in enumerate(alignment))
    return " ".join(f"{source}-{target}" for source, target in pairs)


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
