"""`Example`, the text that transforms change, and `Encoded`, the same example as token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onmt_llm.text.segment import Segment
from onmt_llm.text.vocab import Vocab

IGNORED = -100
"""Label of a position without loss, as in torch's cross entropy."""

Ids = npt.NDArray[np.int32]


@dataclass(slots=True)
class Encoded:
    """One example as ids.

    Attributes:
        src: Input of the encoder, or None for a language model.
        tgt: Input of the decoder.
        labels: The next token at each position of `tgt`; -100 = not trained.
        unknown: Number of tokens that are not in the vocabulary.
        features: (S, F) ids of the source tokens' features; None = the model has none.
        align: (M, 2) aligned positions in `labels` and in `src`; None = unknown.
        trained: Number of trained labels, if known without counting.
        chosen: See `Example`.
        rejected: The same prompt with the rejected answer: a second row of the batch.
        corpus: Number of its corpus; None = only one corpus.
    """

    src: Ids | None
    tgt: Ids
    labels: Ids
    unknown: int
    features: Ids | None = None
    align: Ids | None = None
    trained: int | None = None
    chosen: bool | None = None
    rejected: Encoded | None = None
    corpus: int | None = None

    @property
    def width(self) -> int:
        """Columns that the example needs in a batch: its longer side; with a rejected answer, twice the longer row."""
        own = len(self.tgt) if self.src is None else max(len(self.tgt), len(self.src))
        return own if self.rejected is None else 2 * max(own, self.rejected.width)

    @property
    def num_trained(self) -> int:
        return int(np.count_nonzero(self.labels != IGNORED)) if self.trained is None else self.trained


def side_tokens(side: Sequence[Segment]) -> list[str]:
    """All tokens of a tokenised side."""
    return [token for segment in side for token in segment.tokens or ()]


@dataclass(slots=True)
class Example:
    """One example of a corpus.

    A decoder-only example is its source segments followed by its target segments. `tgt` is empty for plain text.

    Attributes:
        src: Source side (or the whole text of a language-model example).
        tgt: Target side.
        corpus: Name of the corpus in `data:`.
        line: Line in the corpus file, counted from 1.
        path: The corpus file.
        train_end: Whether the appended EOS is trained; None = if the last part is.
        src_features: Features of each source word, until `inferfeats` moves them to the tokens; None = no features.
        closed: The text has its own end (a chat template closed the last answer), so no EOS is appended.
        align: (source, target) pairs of aligned tokens or words, according to `align_unit`; None = unknown.
        encoded: Its ids, if the corpus is tokenised; there is no text then.
        chosen: The answer is the chosen one of two, or labelled as desirable; None = no preference data.
        rejected: The same prompt with the rejected answer.
        pair: Number that identifies the two answers of a pair during transforms.
    """

    src: list[Segment]
    tgt: list[Segment] = field(default_factory=list)
    corpus: str = ""
    line: int = 0
    path: Path | None = None
    closed: bool = False
    train_end: bool | None = None
    src_features: list[list[str]] | None = None
    align: list[tuple[int, int]] | None = None
    encoded: Encoded | None = None
    chosen: bool | None = None
    rejected: Example | None = None
    pair: int | None = None

    @classmethod
    def of_tokens(cls, encoded: Encoded, vocabs: tuple[Vocab, Vocab], *, corpus: str, line: int) -> Example:
        """Rebuild an example from ids; `vocabs` are those of source and target."""
        sides = [side for side in (encoded.src, encoded.tgt) if side is not None]
        src, *tgt = [
            [Segment(tokens=[vocab[id_] for id_ in ids.tolist()])]
            for ids, vocab in zip(sides, vocabs[-len(sides) :], strict=True)
        ]
        return cls(src=src, tgt=tgt[0] if tgt else [], corpus=corpus, line=line)


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
