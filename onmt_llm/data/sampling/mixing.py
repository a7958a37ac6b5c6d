"""Mixing: draw records from weighted corpora.

Integer weights work as in OpenNMT-py: the corpora take turns, with `weight` consecutive records each. Other weights are
proportions, which are kept as exactly as whole records allow at any time, without randomness (Sainte-Laguë method). In
training, a corpus starts again when it ends, indefinitely or for a number of passes; validation reads the corpora one
after the other, once.

The draw depends only on counters and reader positions. So the state is small and plain, and skipping records of other
ranks costs no more than finding where they end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from onmt_llm.data.readers import Reader, Record
from onmt_llm.errors import DataError


@dataclass
class WeightedCorpus:
    """One corpus in the mixture.

    Attributes:
        name: Its name in `data:`.
        reader: Reader of its records.
        weight: Consecutive records per turn, or a proportion.
        epoch: Passes over the corpus begun so far, including the current one.
        drawn: Records drawn so far.
    """

    name: str
    reader: Reader
    weight: float = 1
    epoch: int = 1
    drawn: int = 0


class Mixer:
    """Draws records from weighted corpora.

    Args:
        sources: The corpora; at least one.
        passes: Number of passes over each corpus; None = unlimited.
        in_order: Read one corpus after the other and ignore weights.
    """

    def __init__(self, sources: Sequence[WeightedCorpus], *, passes: int | None = None, in_order: bool = False) -> None:
        assert sources and not (in_order and passes is None)
        self.sources = list(sources)
        self.passes = passes
        self._in_order = in_order
        self._in_turns = all(float(source.weight).is_integer() for source in sources)
        self._phase = 0

    def draw(self, number: int) -> list[list[Record]]:
        """The next `number` records, by corpus; fewer at the end of a finite mixture.

        Raises:
            DataError: A corpus has no records.
        """
        records: list[list[Record]] = [[] for _ in self.sources]

        def take(index: int, wanted: int) -> int:
            found = list(islice(iter(self.sources[index].reader.read, None), wanted))
            records[index] += found
            return len(found)

        self._advance(number, take)
        return records

    def skip(self, number: int) -> int:
        """Skip up to `number` records; returns the number skipped."""
        return self._advance(number, lambda index, wanted: self.sources[index].reader.skip(wanted))

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` resumes at the next record."""
        return {
            "phase": self._phase,
            "corpora": {
                source.name: {
                    "reader": type(source.reader).__name__,
                    "position": source.reader.tell(),
                    "epoch": source.epoch,
                    "drawn": source.drawn,
                }
                for source in self.sources
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`.

        Raises:
            DataError: The state belongs to other corpora, or a file has become too short.
        """
        names = [source.name for source in self.sources]
        if list(state["corpora"]) != names:
            raise DataError(
                f"The saved data position must be of the corpora {', '.join(names)}, "
                f"but is of {', '.join(state['corpora'])}.",
                hint="keep `data:` as it was when the run was saved, or start with fresh data",
            )
        self._phase = state["phase"]
        for source in self.sources:
            saved = state["corpora"][source.name]
            _seek(source, saved["position"], saved_kind=saved.get("reader"))
            source.epoch, source.drawn = saved["epoch"], saved["drawn"]

    def close(self) -> None:
        for source in self.sources:
            source.reader.close()

    def _advance(self, number: int, take: Callable[[int, int], int]) -> int:
        """Advance by up to `number` records; returns the number."""
        done = 0
        while done < number and (active := self._active()):
            for index, wanted in zip(active, self._plan(active, number - done), strict=True):
                found = self._take(index, wanted, take)
                done += found
                if found < wanted:
                    self._phase = 0  # one corpus fewer: the round of turns starts again
        return done

    def _active(self) -> list[int]:
        return [
            index for index, source in enumerate(self.sources) if self.passes is None or source.epoch <= self.passes
        ]

    def _plan(self, active: Sequence[int], number: int) -> list[int]:
        """How many of the next `number` records come from each active corpus."""
        sources = [self.sources[index] for index in active]
        if self._in_order:
            return [number, *[0] * (len(active) - 1)]
        if not self._in_turns:
            return proportional([source.weight for source in sources], [source.drawn for source in sources], number)
        weights = [int(source.weight) for source in sources]
        counts = in_turns(weights, self._phase, number)
        self._phase = (self._phase + number) % sum(weights)
        return counts

    def _take(self, index: int, wanted: int, take: Callable[[int, int], int]) -> int:
        """Take up to `wanted` records of a corpus, over several passes if allowed."""
        source, done, empty = self.sources[index], 0, False
        while done < wanted:
            found = take(index, wanted - done)
            done += found
            source.drawn += found
            if done == wanted:
                break
            if empty and not found:
                where = source.reader.paths[0]
                raise DataError(f"Corpus '{source.name}' must hold at least one example, but {where} has none.")
            empty = not found
            source.reader.rewind()
            source.epoch += 1
            if self.passes is not None and source.epoch > self.passes:
                break
        return done


def in_turns(weights: Sequence[int], phase: int, number: int) -> list[int]:
    """How many of `number` records come from each corpus when they take turns of `weight` records.

    Args:
        weights: By corpus.
        phase: Records already drawn in the current round of turns.
        number: Records wanted.
    """
    total, start = sum(weights), 0
    counts = []
    for weight in weights:
        before, after = (
            (count // total) * weight + min(max(count % total - start, 0), weight) for count in (phase, phase + number)
        )
        counts.append(after - before)
        start += weight
    return counts


def proportional(weights: Sequence[float], drawn: Sequence[int], number: int) -> list[int]:
    """How many of `number` records come from each corpus so that all records drawn are in proportion to `weights`.

    The next record always comes from the corpus with the smallest (records drawn + 1/2) / weight.

    Args:
        weights: By corpus.
        drawn: Records drawn from each so far.
        number: Records wanted.
    """
    share = np.array(weights, dtype=np.float64) / sum(weights)
    room = 2
    while True:
        offered = np.minimum(np.ceil(share * number).astype(np.int64) + room, number)
        owner = np.repeat(np.arange(len(weights)), offered)
        nth = np.arange(offered.sum()) - np.repeat(np.cumsum(offered) - offered, offered)
        rank = (np.array(drawn, dtype=np.float64)[owner] + nth + 0.5) / share[owner]
        counts = np.bincount(owner[np.argsort(rank, kind="stable")[:number]], minlength=len(weights))
        # a corpus that gave all the records it offered might have given more
        if not ((counts == offered) & (offered < number)).any():
            return counts.tolist()
        room = 2 * room + number


def _seek(source: WeightedCorpus, position: Sequence[int], *, saved_kind: str | None) -> None:
    """Go to a saved position of the same kind of reader; older states do not name the kind."""
    kind = type(source.reader).__name__
    try:
        if saved_kind not in (None, kind):
            raise ValueError(f"it was read by a {saved_kind}")
        if source.reader.tell() != position:
            source.reader.seek(position)
    except ValueError as error:
        raise DataError(
            f"Corpus '{source.name}' must have the kind of files that it had when the run was saved, but is read by a "
            f"{kind} ({error}).",
            hint="keep `data:` as it was when the run was saved, or start with fresh data",
        ) from error


def tempered(weights: Sequence[float], sizes: Sequence[int], temperature: float) -> list[float]:
    """Weights times size^(1 / temperature), adding up to 1 (Devlin et al. 2018; Arivazhagan et al. 2019)."""
    logs = np.log(np.array(weights)) + np.log(np.maximum(sizes, 1)) / temperature
    shares = np.exp(logs - logs.max())
    return (shares / shares.sum()).tolist()


def count_records(reader: Reader) -> int:
    """Number of records of a corpus, from the reader's index or else by reading all of it."""
    found = reader.count()
    if found is None:
        position, found = reader.tell(), 0
        while passed := reader.skip(1 << 16):
            found += passed
        reader.seek(position)
    return found
