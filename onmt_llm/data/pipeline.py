"""`Pipeline`: turns corpora into batches, with a state from which it resumes exactly.

The mixture of the corpora is cut into buckets of records (`mixing`, `sharding`); a bucket is transformed, sorted by
length or packed, and cut into batches, which are then shuffled (`bucket`), here or in worker processes (`pool`).
The batches of a bucket depend only on its records, its number and the seed. So the state is small and plain, and
restoring it takes no more than reading one bucket again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onmt_llm.data.bucket import BucketBuilder, BucketJob, BucketTask, Prepared
from onmt_llm.data.corpus import open_corpora
from onmt_llm.data.readers import check_readers
from onmt_llm.data.sampling.mixing import Mixer, WeightedCorpus, count_records, tempered
from onmt_llm.data.sampling.sharding import Assignment, Position, assign, reassign
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.transforms.build import check_added_tokens
from onmt_llm.data.workers.pool import InlinePool, ProcessPool, WorkerPool
from onmt_llm.data.workers.prefetch import prefetch
from onmt_llm.errors import DataError
from onmt_llm.log import logger

if TYPE_CHECKING:
    from onmt_llm.data.batching.batch import Batch

_STATE_VERSION = 2
# Options that determine the batches of a bucket; bucket_size determines its records.
_LAYOUT = {"batch_type", "batch_size_multiple", "packing", "packing_length", "isolate_documents"}
_EPOCH_PAUSE = 60.0
"""Seconds between two lines of `EpochLog`."""


@dataclass(frozen=True)
class _Ready:
    """A batch, the state after it, and the counts up to its bucket; None for a bucket without batches."""

    batch: Batch | None
    state: dict[str, Any]
    counts: dict[str, CorpusCounts]


class Pipeline:
    """Batches of weighted corpora.

    In training it is endless, or has `epochs` passes, and iterating again continues after the last batch
    consumed. In validation every pass reads the corpora once, from the start, bucket by bucket in order of length. One
    iterator at a time.

    Args:
        spec: The corpora, and what happens to them. In training they are shuffled, transformed at random, packed; else
            there is one ordered pass.
        rank: This rank.
        world_size: Number of ranks.
        pin_memory: Workers put batches into page-locked memory.
        audited: The audit of the first bucket has been done.

    Raises:
        ConfigError, DataError: Any error in options or files that can be found before the first example is read.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        *,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        audited: bool = False,
    ) -> None:
        assert 0 <= rank < world_size
        data, batching, training = spec.data, spec.batching, spec.training
        self._spec = spec
        self._corpora = open_corpora(spec, shuffled=True)
        check_added_tokens(spec)
        check_readers([corpus.reader for corpus in self._corpora])
        sources = [WeightedCorpus(corpus.name, corpus.reader, corpus.weight) for corpus in self._corpora]
        if training and data.mixing_temperature is not None:
            _temper(sources, data.mixing_temperature)
        passes = (data.epochs or None) if training else 1
        self._mixer = Mixer(sources, passes=passes, in_order=not training)
        self._rank, self._world_size, self._pin_memory = rank, world_size, pin_memory
        self._size = spec.bucket_size
        self._audited = audited
        self._epochs = EpochLog()
        self._plan = {
            "seed": spec.seed,
            "batch_size": spec.batch_size,
            "weights": [source.weight for source in sources],
            **batching.model_dump(include=_LAYOUT),
        }
        self._start = self._state = self._fresh()
        self._counts = {corpus.name: CorpusCounts() for corpus in self._corpora}

    @property
    def counts(self) -> dict[str, CorpusCounts]:
        """Counts per corpus, up to the bucket of the last batch consumed."""
        return self._counts

    def summary(self) -> str:
        """The counts, one line per corpus."""
        return "\n".join(f"{name}: {counts.summary()}" for name, counts in self._counts.items())

    def state_dict(self) -> dict[str, Any]:
        """Plain data (JSON holds it) from which `load_state_dict` yields the batch after the last one consumed."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any], *others: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`, with any number of workers and ranks.

        If batch options have changed, unfinished buckets are read again, with a warning.

        Args:
            state: The state of this rank; or of rank 0, if the number of ranks or `bucket_size` has changed.
            others: In that case, the states of all other ranks, in order.

        Raises:
            DataError: The states belong to other corpora, not to all ranks, or to files that have shrunk.
        """
        states = [state, *others]
        for each in states:
            if each.get("version") != _STATE_VERSION:
                raise DataError(
                    f"The saved data position must have version {_STATE_VERSION}, but has {each.get('version')}."
                )
        mine = self._own(states)
        if mine is None:
            mine = self._merged(states)
        position = Position.from_dict(mine["position"])
        if mine["plan"] != self._plan:
            if position != position.restarted():
                logger.warning(
                    "Batch options or seed have changed since the run was saved: its last bucket is read again."
                )
            position = position.restarted()
        self._mixer.load_state_dict(position.mixer)
        self._state = {**mine, "position": position.to_dict(), "plan": self._plan}
        self._counts = _counts(self._state)

    def skip_bucket(self) -> None:
        """Skip the rest of the bucket of the last batch."""
        bucket = self._begun_bucket()
        if bucket is None:
            return
        for _ in self:
            if self._begun_bucket() != bucket:
                return

    def _begun_bucket(self) -> int | None:
        """Number of the bucket that is partly consumed, if any."""
        todo = Position.from_dict(self._state["position"]).todo
        return todo[0].bucket if todo and todo[0] != todo[0].whole else None

    def close(self) -> None:
        """Close the corpus files."""
        self._mixer.close()

    def __iter__(self) -> Iterator[Batch]:
        if not self._spec.training:
            self._state = self._start
        ready = self._ready(self._state)
        workers = self._spec.batching.num_workers
        if workers:
            ready = prefetch(ready, workers * self._spec.batching.prefetch_factor)
        for item in ready:
            self._state, self._counts = item.state, item.counts
            if item.batch is not None:
                yield item.batch

    def _ready(self, state: Mapping[str, Any]) -> Iterator[_Ready]:
        """Batches from a state on, each with the state after it."""
        from onmt_llm.data.batching.batch import Batch

        counts, kept_epochs = _counts(state), dict(state["kept_epochs"])
        position = Position.from_dict(state["position"])
        epochs = {name: corpus["epoch"] for name, corpus in position.mixer["corpora"].items()}
        for assignment, prepared in self._pool().run(self._tasks(position)):
            shared = {"version": _STATE_VERSION, "plan": self._plan, "rank": self._rank, "world_size": self._world_size}
            begun = {**shared, "kept_epochs": kept_epochs, "counts": _plain(counts)}
            counts = _added(counts, prepared.counts)
            kept_epochs = self._check_yield(assignment, prepared.kept, kept_epochs, counts)
            epochs = self._report_epochs(assignment, epochs)
            done = {
                **shared,
                "kept_epochs": kept_epochs,
                "counts": _plain(counts),
                "position": assignment.after.to_dict(),
            }
            for number, arrays in enumerate(prepared.batches, start=1):
                batch = Batch.of(arrays)
                last = number == len(prepared.batches)
                yield _Ready(
                    batch.pin() if self._pin_memory else batch,
                    done if last else {**begun, "position": assignment.before.after(number).to_dict()},
                    counts,
                )
            if not prepared.batches:
                yield _Ready(None, done, counts)

    def _tasks(self, position: Position) -> Iterator[tuple[Assignment, BucketTask]]:
        for assignment in assign(self._mixer, position, size=self._size, rank=self._rank, world_size=self._world_size):
            yield assignment, BucketTask(assignment.share, assignment.records, audit=not self._audited)
            self._audited = True

    def _pool(self) -> WorkerPool[BucketTask, Prepared]:
        """Validation needs no processes of its own: its little data is prepared in a thread."""
        batching = self._spec.batching
        if batching.num_workers and batching.worker_type == "process" and self._spec.training:
            return ProcessPool(BucketJob(self._spec), batching.num_workers)
        return InlinePool(BucketBuilder(self._spec, self._corpora))

    def _own(self, states: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """The state of this rank, if number of ranks and bucket size have not changed."""
        mine = next((state for state in states if state["rank"] == self._rank), states[0])
        same = (mine["rank"], mine["world_size"]) == (self._rank, self._world_size)
        resized = mine["position"]["size"] != self._size
        return mine if same and not (resized and self._world_size > 1) else None

    def _merged(self, states: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """This rank's share of the unfinished work of all ranks."""
        if [state["rank"] for state in states] != list(range(states[0]["world_size"])):
            ranks = ", ".join(str(state["rank"]) for state in states)
            raise DataError(
                f"The saved data positions must be those of all {states[0]['world_size']} ranks, in order, when their "
                f"number or bucket_size has changed, but are those of rank {ranks}."
            )
        positions = reassign([Position.from_dict(state["position"]) for state in states], self._world_size)
        counts = {name: CorpusCounts() for name in states[0]["counts"]}
        for state in states if self._rank == 0 else ():
            counts = _added(counts, _counts(state))
        return {
            **states[0],
            "rank": self._rank,
            "world_size": self._world_size,
            "position": positions[self._rank].to_dict(),
            "counts": _plain(counts),
        }

    def _check_yield(
        self,
        assignment: Assignment,
        kept: Mapping[str, int],
        epochs: Mapping[str, int],
        counts: Mapping[str, CorpusCounts],
    ) -> dict[str, int]:
        """Refuse a corpus that yields nothing in a whole pass (of all ranks), which would be read endlessly.

        Returns:
            By corpus, the last epoch in which an example was kept.
        """
        last = dict(epochs)
        for name, corpus in assignment.after.mixer["corpora"].items():
            if kept[name] or not self._spec.training:
                last[name] = corpus["epoch"]
            elif corpus["epoch"] - last[name] > self._world_size:
                raise DataError(
                    f"Corpus '{name}' must yield at least one example in a whole pass, but yields none: "
                    f"{counts[name].summary()}.",
                    hint="look at its transforms and limits, or write samples with n_sample",
                )
        return last

    def _report_epochs(self, assignment: Assignment, before: Mapping[str, int]) -> dict[str, int]:
        epochs = {name: corpus["epoch"] for name, corpus in assignment.after.mixer["corpora"].items()}
        for name, epoch in epochs.items() if self._spec.training else ():
            if before[name] < epoch <= (self._mixer.passes or epoch):
                self._epochs.begun(name, epoch)
        return epochs

    def _fresh(self) -> dict[str, Any]:
        """The state before the first record."""
        names = [corpus.name for corpus in self._corpora]
        return {
            "version": _STATE_VERSION,
            "plan": self._plan,
            "rank": self._rank,
            "world_size": self._world_size,
            "kept_epochs": {name: 0 for name in names},
            "counts": _plain({name: CorpusCounts() for name in names}),
            "position": Position(self._size, 0, self._mixer.state_dict()).to_dict(),
        }


class EpochLog:
    """Logs the epoch of each corpus, at most once a minute: small corpora may have several epochs per second."""

    def __init__(self) -> None:
        self._pending: dict[str, int] = {}
        self._last_logged: float | None = None

    def begun(self, corpus: str, epoch: int) -> None:
        """Log that an epoch of a corpus has begun, now or with the next line."""
        self._pending[corpus] = epoch
        now = time.monotonic()
        if self._last_logged is None or now - self._last_logged >= _EPOCH_PAUSE:
            self._last_logged = now
            epochs = [f"{epoch:,} of corpus '{corpus}'" for corpus, epoch in self._pending.items()]
            logger.info("Epoch %s.", ", ".join(epochs))
            self._pending.clear()


def _temper(sources: Sequence[WeightedCorpus], temperature: float) -> None:
    """Set the weights according to the mixing temperature."""
    sizes = [count_records(source.reader) for source in sources]
    weights = tempered([source.weight for source in sources], sizes, temperature)
    for source, size, weight in zip(sources, sizes, weights, strict=True):
        logger.info(
            "Corpus '%s' has %d examples, and a share of %.2f%% of the mixture.", source.name, size, 100 * weight
        )
        source.weight = weight


def _counts(state: Mapping[str, Any]) -> dict[str, CorpusCounts]:
    return {name: CorpusCounts.from_dict(saved) for name, saved in state["counts"].items()}


def _plain(counts: Mapping[str, CorpusCounts]) -> dict[str, Any]:
    return {name: count.to_dict() for name, count in counts.items()}


def _added(counts: Mapping[str, CorpusCounts], more: Mapping[str, CorpusCounts]) -> dict[str, CorpusCounts]:
    """The sums, as new objects."""
    sums = {name: CorpusCounts.from_dict(count.to_dict()) for name, count in counts.items()}
    for name, count in more.items():
        sums[name].add(count)
    return sums
