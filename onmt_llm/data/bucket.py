"""`BucketBuilder`: transform and encode the records of a bucket, sort or pack them, cut, shuffle and collate batches.

The result depends on the records, the options, the seed and the number of the bucket: not on the process, nor on what
it did before.
"""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

from onmt_llm.data.batching.collate import BatchArrays, PackedRow, collate, collate_rows
from onmt_llm.data.batching.packing import pack_rows, row_width
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.example import Encoded
from onmt_llm.data.inspection.audit import audit
from onmt_llm.data.readers import Record
from onmt_llm.data.sampling.sharding import BucketShare
from onmt_llm.data.spec import PipelineSpec, derived_seed
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.log import log_once, logger

T = TypeVar("T")


@dataclass(frozen=True)
class BucketJob:
    """The preparation of buckets, as the job of a worker pool.

    Attributes:
        spec: How buckets are prepared.
    """

    spec: PipelineSpec
    without_processes: ClassVar[str] = "num_workers: 0 (or worker_type: thread)"
    less_memory: ClassVar[str] = "fewer num_workers, or a smaller bucket_size"

    @property
    def plugins(self) -> Sequence[str]:
        return self.spec.data.plugins

    def open(self) -> BucketBuilder:
        """Build the builder in the process that uses it."""
        return BucketBuilder(self.spec)


@dataclass(frozen=True)
class BucketTask:
    """A bucket to prepare.

    Attributes:
        share: Its number, and the batches to prepare.
        records: Its records, by corpus.
        audit: Whether to audit its data (see `inspection.audit`).
    """

    share: BucketShare
    records: list[list[Record]]
    audit: bool = False


@dataclass(frozen=True)
class Prepared:
    """A prepared bucket.

    Attributes:
        batches: The requested batches, in order.
        counts: Counts of its records by corpus; empty if another rank counts them.
        kept: Number of kept examples, by corpus.
    """

    batches: list[BatchArrays]
    counts: dict[str, CorpusCounts] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


class BucketBuilder:
    """Prepares buckets, one at a time.

    Args:
        spec: How buckets are prepared.
        corpora: The corpora of the specification, if they are open.
    """

    def __init__(self, spec: PipelineSpec, corpora: Sequence[Corpus] | None = None) -> None:
        self._spec = spec
        self._corpora = open_corpora(spec, shuffled=True) if corpora is None else corpora

    def __call__(self, task: BucketTask) -> Prepared:
        """The batches of a bucket, and the counts of its records.

        Raises:
            DataError: A record is not as it must be; or, with `audit`, the loss would see nothing.
        """
        with _gc_disabled():
            return self._prepare(task)

    def _prepare(self, task: BucketTask) -> Prepared:
        counts = {corpus.name: CorpusCounts() for corpus in self._corpora}
        shares = [
            (corpus, list(self._encode(corpus, records, task.share.bucket, counts[corpus.name])))
            for corpus, records in zip(self._corpora, task.records, strict=True)
        ]
        if task.audit:
            for level, note in audit(shares, counts, self._spec.codec, training=self._spec.training):
                logger.log(level, note)
        if self._spec.training and len(shares) > 1:
            _number([encoded for _, encoded in shares])
        examples = [example for _, encoded in shares for example in encoded]
        return Prepared(
            list(self._batches(examples, task.share)),
            counts if task.share.counts else {},
            {name: count.kept for name, count in counts.items()},
        )

    def _encode(
        self, corpus: Corpus, records: Sequence[Record], bucket: int, counts: CorpusCounts
    ) -> Iterator[Encoded]:
        for index, transform in enumerate(corpus.transforms):
            transform.reseed(derived_seed(self._spec.seed, bucket, corpus.name, index))
        examples = deque(corpus.examples(records, counts))
        while examples:  # frees each example as soon as it is encoded
            encoded = corpus.encode(examples.popleft(), counts)
            if encoded is not None:
                yield encoded

    def _batches(self, examples: list[Encoded], share: BucketShare) -> Iterator[BatchArrays]:
        spec = self._spec
        pad_id, src_pad_id = spec.pad_ids
        if spec.training and spec.batching.packing != "off":
            isolate = spec.batching.isolate_documents
            for rows in self._wanted(self._pack(examples, share.bucket), share):
                yield collate_rows(rows, pad_id=pad_id, src_pad_id=src_pad_id, isolate=isolate)
        else:
            for batch in self._wanted(self._sort(examples), share):
                yield collate(batch, pad_id=pad_id, src_pad_id=src_pad_id)

    def _wanted(self, batches: list[list[T]], share: BucketShare) -> list[list[T]]:
        """The batches of the share, after all have been shuffled."""
        if self._spec.training:
            random.Random(derived_seed(self._spec.seed, share.bucket, "order", 0)).shuffle(batches)
        return batches[share.first :: share.step]

    def _sort(self, examples: list[Encoded]) -> list[list[Encoded]]:
        # equal widths are sorted by both sides, which minimises padding on the shorter one
        examples.sort(
            key=lambda example: (example.width, len(example.tgt), 0 if example.src is None else len(example.src))
        )
        widths = [example.width for example in examples]
        self._note_widest(widths[-1] if widths else 0, self._spec.batch_size)
        return [examples[start:end] for start, end in self._cut(widths)]

    def _pack(self, examples: list[Encoded], bucket: int) -> list[list[PackedRow]]:
        length = self._spec.row_length
        rows = pack_rows(examples, self._spec.batching.packing, length)
        random.Random(derived_seed(self._spec.seed, bucket, "rows", 0)).shuffle(rows)
        widths = [row_width(row) for row in rows]
        self._note_widest(max(widths, default=0), length)
        return [rows[start:end] for start, end in self._cut(widths)]

    def _cut(self, widths: Sequence[int]) -> list[tuple[int, int]]:
        batching = self._spec.batching
        return cut_batches(
            widths,
            batch_size=self._spec.batch_size,
            batch_type=batching.batch_type,
            multiple=batching.batch_size_multiple,
        )

    def _note_widest(self, width: int, room: int) -> None:
        packed = self._spec.training and self._spec.batching.packing != "off"
        if width > room and (packed or self._spec.batching.batch_type == "tokens"):
            option = self._spec.room_option
            what = f"a row of {room} ({option})" if packed else f"{option} {room}"
            own = "row" if packed else "batch"
            log_once(
                f"An example has {width} tokens, more than {what}: it is a {own} of its own (filtertoolong keeps such "
                "examples out)."
            )


def cut_batches(
    widths: Sequence[int], *, batch_size: int, batch_type: Literal["sents", "tokens"], multiple: int = 1
) -> list[tuple[int, int]]:
    """Boundaries of batches in a sequence of examples.

    An example wider than `batch_size` tokens gets a batch of its own.

    Args:
        widths: Columns that each example needs, in batching order.
        batch_size: Maximum number of examples, or of positions including padding (examples x widest).
        batch_type: Which of the two.
        multiple: The size of full batches is a multiple of this number, if they are at least that large.

    Returns:
        (start, end) of each batch; together they cover all examples.
    """
    cuts: list[tuple[int, int]] = []
    start = widest = 0
    for index, width in enumerate(widths):
        widest = max(widest, width)
        while index > start and _size(index + 1 - start, widest, batch_type) > batch_size:
            number = index - start
            end = start + (number - number % multiple if number > multiple else number)
            cuts.append((start, end))
            start, widest = end, max(widths[end : index + 1])
    if start < len(widths):
        cuts.append((start, len(widths)))
    return cuts


def _size(number: int, widest: int, batch_type: str) -> int:
    return number if batch_type == "sents" else number * widest


def _number(shares: Sequence[Sequence[Encoded]]) -> None:
    """Set the number of the corpus of each example and of its rejected answer."""
    for number, examples in enumerate(shares):
        for example in examples:
            example.corpus = number
            if example.rejected is not None:
                example.rejected.corpus = number


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disable the cyclic garbage collector: a bucket creates hundreds of thousands of objects and no cycles, and every
    collection also scans everything that torch has loaded, which took a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
