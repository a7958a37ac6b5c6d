"""Text, words and length of the sides of an example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from onmt_llm.data.example import Example
from onmt_llm.text.segment import Segment


def text_of(side: Sequence[Segment]) -> str:
    """The text of a side, without tokens that a template has inserted."""
    return side[0].text or "" if len(side) == 1 else "".join(segment.text or "" for segment in side)


def rewrite(side: Sequence[Segment], change: Callable[[str], str]) -> None:
    """Change every text of a side in place; with several parts, white space around each is kept, since it is layout."""
    for segment in side:
        if segment.text is None:
            continue
        if len(side) == 1:
            segment.text = change(segment.text)
        elif core := segment.text.strip():
            before, after = segment.text.split(core, 1)
            segment.text = f"{before}{change(core)}{after}"


def rewrite_both(example: Example, src: Callable[[str], str], tgt: Callable[[str], str]) -> Example:
    """Change the texts of both sides in place."""
    rewrite(example.src, src)
    rewrite(example.tgt, tgt)
    return example


def words(text: str) -> list[str]:
    """Words as OpenNMT-py counts them: split at every single space or line break."""
    return text.replace("\n", " ").split(" ")


def num_tokens(side: Iterable[Segment], split: Callable[[str], list[str]] = str.split) -> int:
    """Tokens of a side; words, as `split` finds them, where it is not tokenised yet."""
    return sum(len(split(segment.text or "")) if (number := segment.num_tokens) is None else number for segment in side)
