"""Mixing: which corpus the next record comes from.

Training goes round the corpora for ever and takes `weight` records in a row from each; a corpus that ends begins again.
Validation reads every corpus once, one after the other. Every rank walks the same sequence and keeps each n-th record,
so the records of all ranks together are those of one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onmt_llm.data.readers import Reader, Record
from onmt_llm.errors import DataError


@dataclass
class Source:
    """One corpus in the mixture.

    Attributes:
        name: Its name in `data:`.
        reader: Where its records come from.
        weight: Records taken in a row.
        epoch: Passes over the corpus begun so far, the present one included.
    """

    name: str
    reader: Reader
    weight: int = 1
    epoch: int = 1


class Mixer:
    """Draws records from weighted corpora.

    Args:
        sources: The corpora; at least one.
        infinite: Go round for ever by weight; otherwise each corpus once, in order.
        rank: Which share of the records is ours.
        world_size: Into how many shares the records are dealt.
    """

    def __init__(self, sources: Sequence[Source], *, infinite: bool, rank: int = 0, world_size: int = 1) -> None:
        assert sources and 0 <= rank < world_size
        self.sources = list(sources)
        self.infinite = infinite
        self.rank = rank
        self.world_size = world_size
        self._turn = 0
        self._taken = 0
        self._drawn = 0

    def draw(self) -> tuple[int, Record] | None:
        """Our next record and the index of its corpus; None once a finite mixture is used up.

        Raises:
            DataError: A corpus has no record in a whole pass.
        """
        while (item := self._next()) is not None:
            self._drawn += 1
            if (self._drawn - 1) % self.world_size == self.rank:
                return item
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues with the very next record."""
        return {
            "turn": self._turn,
            "taken": self._taken,
            "drawn": self._drawn,
            "corpora": {
                source.name: {"position": source.reader.tell(), "epoch": source.epoch} for source in self.sources
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            DataError: The state is of other corpora, or a file is now too short for it.
        """
        names = [source.name for source in self.sources]
        if list(state["corpora"]) != names:
            raise DataError(
                f"The saved data position must be of the corpora {', '.join(names)}, "
                f"but is of {', '.join(state['corpora'])}.",
                hint="keep `data:` as it was when the run was saved, or start with fresh data",
            )
        self._turn, self._taken, self._drawn = state["turn"], state["taken"], state["drawn"]
        for source in self.sources:
            saved = state["corpora"][source.name]
            source.reader.seek(saved["position"])
            source.epoch = saved["epoch"]

    def rewind(self) -> None:
        """Begin again at the first record of the first corpus."""
        self._turn = self._taken = self._drawn = 0
        for source in self.sources:
            source.reader.rewind()
            source.epoch = 1

    def close(self) -> None:
        for source in self.sources:
            source.reader.close()

    def _next(self) -> tuple[int, Record] | None:
        return self._next_weighted() if self.infinite else self._next_in_order()

    def _next_weighted(self) -> tuple[int, Record]:
        if self._taken == self.sources[self._turn].weight:
            self._turn = (self._turn + 1) % len(self.sources)
            self._taken = 0
        self._taken += 1
        source = self.sources[self._turn]
        record = source.reader.read()
        if record is None:
            source.reader.rewind()
            source.epoch += 1
            record = source.reader.read()
        if record is None:
            where = source.reader.paths[0]
            raise DataError(f"Corpus '{source.name}' must hold at least one example, but {where} has none.")
        return self._turn, record

    def _next_in_order(self) -> tuple[int, Record] | None:
        while self._turn < len(self.sources):
            record = self.sources[self._turn].reader.read()
            if record is not None:
                return self._turn, record
            self._turn += 1
        return None
