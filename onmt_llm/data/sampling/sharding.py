"""Sharding: assign the buckets of the mixture to ranks, and reassign unfinished ones when a run resumes.

The mixture is one sequence of records, and every `size` consecutive records form a bucket; its batches do not depend on
the rank that prepares it. In each round every rank is assigned one bucket, in an order that differs between rounds (so
that no pattern in the corpora coincides with the ranks). A rank skips the records of other buckets. If the corpora end
in a round with too few buckets, the ranks share its batches.

The remaining work is therefore always a few shares of assigned buckets, and everything from some bucket on. It can be
reassigned to any other number of ranks (`reassign`) without losing or repeating anything. See
docs/decisions/009-global-buckets.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from onmt_llm.data.readers import Record
from onmt_llm.data.sampling.mixing import Mixer
from onmt_llm.data.spec import derived_seed
from onmt_llm.errors import DataError


class BucketShare(NamedTuple):
    """Batches of a bucket: number `first`, and every `step`-th after it.

    Attributes:
        bucket: Number of the bucket in the mixture, from 0.
        first: The first batch.
        step: 1, or the number of ranks that share the bucket.
    """

    bucket: int
    first: int = 0
    step: int = 1

    def after(self, done: int) -> BucketShare:
        """The rest of the share after `done` of its batches."""
        return self._replace(first=self.first + done * self.step)

    @property
    def whole(self) -> BucketShare:
        """The share before any of its batches were done."""
        return self._replace(first=self.first % self.step)

    @property
    def counts(self) -> bool:
        """Whether the bucket's records are counted here: only the first of several ranks that share it counts them."""
        return self.first % self.step == 0


@dataclass(frozen=True)
class Position:
    """The position of a rank in the mixture.

    Attributes:
        size: Records per bucket, up to bucket `next`.
        bucket: Number of the next bucket in the state of `mixer`.
        mixer: State of the mixer there.
        todo: Shares to finish first, in order; the first may be partly done.
        next: First bucket of the next round.
    """

    size: int
    bucket: int
    mixer: Mapping[str, Any]
    todo: tuple[BucketShare, ...] = ()
    next: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "todo": [list(share) for share in self.todo]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Position:
        return cls(**{**saved, "todo": tuple(BucketShare(*share) for share in saved["todo"])})

    def after(self, done: int) -> Position:
        """The position after `done` batches of the first share."""
        return replace(self, todo=(self.todo[0].after(done), *self.todo[1:]))

    def restarted(self) -> Position:
        """The same position with unfinished shares restarted, for when batches are cut differently."""
        return replace(self, todo=tuple(share.whole for share in self.todo))


@dataclass(frozen=True)
class Assignment:
    """A bucket, or a share of one, that a rank prepares.

    Attributes:
        share: The bucket, and which of its batches.
        records: Its records, by corpus.
        before: Position before the share.
        after: Position after it.
    """

    share: BucketShare
    records: list[list[Record]]
    before: Position
    after: Position


def assign(mixer: Mixer, position: Position, *, size: int, rank: int, world_size: int) -> Iterator[Assignment]:
    """The assignments of a rank from a position on; endless if the mixture is.

    Args:
        mixer: Draws the records; its state changes.
        position: Starting position.
        size: Records per bucket from `position.next` on.
        rank: This rank.
        world_size: Number of ranks.
    """
    before = position
    for assignment in _unfinished_shares(mixer, before):
        yield assignment
        before = assignment.after
    mixer.load_state_dict(before.mixer)
    _skip(mixer, before.next - before.bucket, before.size)
    before = replace(before, size=size, bucket=before.next, mixer=mixer.state_dict())
    while (assigned := _assign_round(mixer, before, rank, world_size)) is not None:
        for assignment in assigned:
            yield assignment
            before = assignment.after


def _unfinished_shares(mixer: Mixer, position: Position) -> Iterator[Assignment]:
    """The shares left over from before."""
    mixer.load_state_dict(position.mixer)
    records: list[list[Record]] = []
    before, at = position, position.bucket
    while before.todo:
        share, *rest = before.todo
        if share.bucket >= at:
            _skip(mixer, share.bucket - at, before.size)
            before = replace(before, bucket=share.bucket, mixer=mixer.state_dict())
            records, at = mixer.draw(before.size), share.bucket + 1
        after = replace(before, todo=tuple(rest))
        if not rest or rest[0].bucket >= at:
            # otherwise the next share belongs to the same bucket, which must be read again
            after = replace(after, bucket=at, mixer=mixer.state_dict())
        yield Assignment(share, records, before, after)
        before = after


def _assign_round(mixer: Mixer, start: Position, rank: int, world_size: int) -> Iterator[Assignment] | None:
    """The next round; None at the end. The mixer is at its first bucket."""
    own = start.next + _turn(start.next, rank, world_size)
    found = _skip(mixer, own - start.bucket, start.size)
    before = replace(
        start, bucket=own, mixer=mixer.state_dict(), todo=(BucketShare(own),), next=start.next + world_size
    )
    records = mixer.draw(start.size)
    found += sum(map(len, records))
    found += _skip(mixer, start.next + world_size - own - 1, start.size)
    buckets = -(-found // start.size)
    if buckets == world_size:
        after = replace(before, bucket=before.next, mixer=mixer.state_dict(), todo=())
        return iter([Assignment(BucketShare(own), records, before, after)])
    if not buckets:
        return None
    # The corpora end here. Every rank reads the remaining buckets and takes its share of the batches.
    shares = _shares(start.next, start.next + buckets, rank, world_size)
    return _unfinished_shares(mixer, replace(start, todo=shares, next=start.next + buckets))


def _skip(mixer: Mixer, buckets: int, size: int) -> int:
    """Skip buckets one by one: at the end of a corpus, the next records depend on bucket boundaries."""
    return sum(mixer.skip(size) for _ in range(buckets))


def _turn(start: int, rank: int, world_size: int) -> int:
    """Index of the rank's bucket in the round that begins at bucket `start`."""
    return (rank + derived_seed("round", start)) % world_size


def _shares(start: int, end: int, rank: int, world_size: int) -> tuple[BucketShare, ...]:
    return tuple(BucketShare(bucket, (rank + bucket) % world_size, world_size) for bucket in range(start, end))


def reassign(positions: Sequence[Position], world_size: int) -> list[Position]:
    """Distribute the unfinished work of all ranks to another number of ranks.

    Args:
        positions: Saved positions of all ranks, in order.
        world_size: New number of ranks.

    Raises:
        DataError: Buckets of different sizes are pending.
    """
    if len({position.size for position in positions}) > 1:
        raise DataError(
            "bucket_size must not be changed again before all processes have finished buckets of the previous size.",
        )
    end = max(position.next for position in positions)
    shares = sorted(
        share
        for rank, position in enumerate(positions)
        for share in (*position.todo, *_rounds(position.next, end, rank, len(positions)))
    )
    first = min(positions, key=lambda position: position.bucket)
    return [replace(first, todo=tuple(shares[rank::world_size]), next=end) for rank in range(world_size)]


def _rounds(start: int, end: int, rank: int, world_size: int) -> Iterator[BucketShare]:
    """Shares of a rank in the rounds of buckets `start` ... `end` - 1."""
    for first in range(start, end, world_size):
        if first + world_size <= end:
            yield BucketShare(first + _turn(first, rank, world_size))
        else:
            yield from _shares(first, end, rank, world_size)
