"""`Example`, the unit that readers yield and transforms change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onmt_llm.text.segment import Segment

if TYPE_CHECKING:
    from onmt_llm.data.batching.encoder import Encoded

__all__ = ["Example", "Segment", "side_tokens"]


def side_tokens(side: Sequence[Segment]) -> list[str]:
    """All tokens of a side, once it is tokenised."""
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
        path: That file.
        train_end: The loss counts the EOS that is put behind it; None = if it counts its last part.
        src_features: Features of each source word, until `inferfeats` has put them behind the tokens; None = none.
        closed: The text brings its own end (a chat template closed the last answer): no EOS is put behind it.
        align: (source, target) pairs of aligned tokens or words, as the corpus counts them; None = not known.
        encoded: Its ids, where it comes of tokens; there is no text then.
        good: The answer is the better one of two, or a good one; None = nobody has judged it.
        rival: The same question with the worse answer.
        pair: Number by which the two are known while each goes through the transforms.
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
    good: bool | None = None
    rival: Example | None = None
    pair: int | None = None
