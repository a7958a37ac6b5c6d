"""From the records of a bucket to its batches: transform, encode, sort or pack, cut, shuffle, put side by side.

What comes out depends on the records, the options, the seed and the number of the bucket: not on the process that does
it, nor on what it did before.
"""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.config.section import Section
from onmt_llm.data.batching.collate import BatchArrays, collate, collate_rows
from onmt_llm.data.batching.cut import cut_batches
from onmt_llm.data.batching.encoder import Encoded
from onmt_llm.data.batching.packing import Row, pack_rows, row_width
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.inspection.audit import audit
from onmt_llm.data.model_text import ModelText
from onmt_llm.data.readers import Record
from onmt_llm.data.sampling.sharding import Piece
from onmt_llm.data.seeding import derived_seed
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.errors import ConfigError
from onmt_llm.log import log_once, logger
from onmt_llm.text.vocab import Vocab

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """All that a process needs to know to prepare buckets; it can be pickled.

    Attributes:
        corpora: Corpora by name.
        data: Options of all corpora.
        batching: How examples become batches.
        options: Sections of the transforms, by `Transform.section`.
        model: The model that they are prepared for.
        seed: Of the order of batches and of random transforms.
        training: With random transforms, packing, and batches in random order.

    Raises:
        ConfigError: Options of batching that do not go together.
    """

    corpora: Mapping[str, CorpusConfig]
    data: DataConfig
    batching: BatchConfig
    options: Mapping[str, Section]
    model: ModelText
    seed: int
    training: bool

    def __post_init__(self) -> None:
        batching = self.batching
        if batching.packing != "off" and self.data.objective != "sft":
            raise ConfigError(
                f"packing must be off with objective: {self.data.objective}, but is '{batching.packing}': its answers "
                "are judged row by row."
            )
        if batching.packing in ("split", "wrap") and self.model.task == "seq2seq":
            raise ConfigError(
                f"packing must be 'off' or 'pack' for an encoder-decoder, but is '{batching.packing}': a target that "
                "is cut has no source of its own."
            )
        if batching.packing != "off" and batching.packing_length is None and batching.batch_type == "sents":
            raise ConfigError(
                "packing_length must be given with batch_type 'sents', where batch_size counts rows, but is not."
            )

    def open(self) -> list[Corpus]:
        """The corpora, without a look at their files yet."""
        return open_corpora(
            self.corpora,
            data=self.data,
            options=self.options,
            model=self.model,
            training=self.training,
            seed=self.seed if self.training else None,
        )

    @property
    def batch_size(self) -> int:
        return self.batching.batch_size if self.training else self.batching.valid_batch_size

    @property
    def room_option(self) -> str:
        """The option that says how many tokens a batch, or a packed row, has room for."""
        if not self.training:
            return "valid_batch_size"
        return "packing_length" if self.batching.packing != "off" and self.batching.packing_length else "batch_size"

    @property
    def row_length(self) -> int:
        """Positions of a packed row."""
        return self.batching.packing_length or self.batch_size

    @property
    def pad_ids(self) -> tuple[int, int]:
        """Ids that fill targets and sources."""
        return _pad_id(self.model.vocab), _pad_id(self.model.src_vocab or self.model.vocab)


@dataclass(frozen=True)
class BucketTask:
    """A bucket to prepare.

    Attributes:
        piece: Its number, and which of its batches are wanted.
        records: Its records, by corpus.
        audit: Look for what would spoil the whole run.
    """

    piece: Piece
    records: list[list[Record]]
    audit: bool = False


@dataclass(frozen=True)
class Prepared:
    """A bucket that is prepared.

    Attributes:
        batches: Those that were wanted, in order.
        counts: What happened to its records, by corpus; empty where another rank counts them.
        kept: Examples that came through, by corpus.
    """

    batches: list[BatchArrays]
    counts: dict[str, CorpusCounts] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


class Preparer:
    """Prepares buckets, one at a time.

    Args:
        recipe: How.
        corpora: As the recipe opens them, if they are open.
    """

    def __init__(self, recipe: Recipe, corpora: Sequence[Corpus] | None = None) -> None:
        self._recipe = recipe
        self._corpora = recipe.open() if corpora is None else corpora

    def __call__(self, task: BucketTask) -> Prepared:
        """The batches of a bucket, and what happened to its records.

        Raises:
            DataError: A record is not as it must be; or, with `audit`, the loss would see nothing.
        """
        with _cycles_left_alone():
            return self._prepare(task)

    def _prepare(self, task: BucketTask) -> Prepared:
        for corpus in self._corpora:
            corpus.counts = CorpusCounts()
        shares = [
            (corpus, list(self._encode(corpus, records, task.piece.bucket)))
            for corpus, records in zip(self._corpora, task.records, strict=True)
        ]
        counts = {corpus.name: corpus.counts for corpus in self._corpora}
        if task.audit:
            for level, note in audit(shares, self._recipe.model, training=self._recipe.training):
                logger.log(level, note)
        if self._recipe.training and len(shares) > 1:
            _number([encoded for _, encoded in shares])
        examples = [example for _, encoded in shares for example in encoded]
        return Prepared(
            list(self._batches(examples, task.piece)),
            counts if task.piece.counts else {},
            {name: count.kept for name, count in counts.items()},
        )

    def _encode(self, corpus: Corpus, records: Sequence[Record], bucket: int) -> Iterator[Encoded]:
        for index, transform in enumerate(corpus.transforms):
            transform.reseed(derived_seed(self._recipe.seed, bucket, corpus.name, index))
        examples = deque(corpus.examples(records))
        while examples:  # each is let go as soon as it is encoded
            encoded = corpus.encode(examples.popleft())
            if encoded is not None:
                yield encoded

    def _batches(self, examples: list[Encoded], piece: Piece) -> Iterator[BatchArrays]:
        recipe = self._recipe
        pad_id, src_pad_id = recipe.pad_ids
        if recipe.training and recipe.batching.packing != "off":
            isolate = recipe.batching.isolate_documents
            for rows in self._wanted(self._pack(examples, piece.bucket), piece):
                yield collate_rows(rows, pad_id=pad_id, src_pad_id=src_pad_id, isolate=isolate)
        else:
            for batch in self._wanted(self._sort(examples), piece):
                yield collate(batch, pad_id=pad_id, src_pad_id=src_pad_id)

    def _wanted(self, batches: list[list[T]], piece: Piece) -> list[list[T]]:
        """Those of the piece, after the shuffle of all."""
        if self._recipe.training:
            random.Random(derived_seed(self._recipe.seed, piece.bucket, "order", 0)).shuffle(batches)
        return batches[piece.first :: piece.step]

    def _sort(self, examples: list[Encoded]) -> list[list[Encoded]]:
        # within one width by either side, which leaves the least padding on the shorter one
        examples.sort(
            key=lambda example: (example.width, len(example.tgt), 0 if example.src is None else len(example.src))
        )
        widths = [example.width for example in examples]
        self._note_widest(widths[-1] if widths else 0, self._recipe.batch_size)
        return [examples[start:end] for start, end in self._cut(widths)]

    def _pack(self, examples: list[Encoded], bucket: int) -> list[list[Row]]:
        length = self._recipe.row_length
        rows = pack_rows(examples, self._recipe.batching.packing, length)
        random.Random(derived_seed(self._recipe.seed, bucket, "rows", 0)).shuffle(rows)
        widths = [row_width(row) for row in rows]
        self._note_widest(max(widths, default=0), length)
        return [rows[start:end] for start, end in self._cut(widths)]

    def _cut(self, widths: Sequence[int]) -> list[tuple[int, int]]:
        batching = self._recipe.batching
        return cut_batches(
            widths,
            batch_size=self._recipe.batch_size,
            batch_type=batching.batch_type,
            multiple=batching.batch_size_multiple,
        )

    def _note_widest(self, width: int, room: int) -> None:
        packed = self._recipe.training and self._recipe.batching.packing != "off"
        if width > room and (packed or self._recipe.batching.batch_type == "tokens"):
            option = self._recipe.room_option
            what = f"a row of {room} ({option})" if packed else f"{option} {room}"
            own = "row" if packed else "batch"
            log_once(
                f"An example has {width} tokens, more than {what}: it is a {own} of its own (filtertoolong keeps such "
                "examples out)."
            )


def _number(shares: Sequence[Sequence[Encoded]]) -> None:
    """Tell each example, and its rival, the number of its corpus."""
    for number, examples in enumerate(shares):
        for example in examples:
            example.corpus = number
            if example.rival is not None:
                example.rival.corpus = number


@contextmanager
def _cycles_left_alone() -> Iterator[None]:
    """No search for cyclic garbage: a bucket makes hundreds of thousands of objects and no cycle, and every search goes
    through all that torch has loaded too, which took a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _pad_id(vocab: Vocab) -> int:
    """Padding is hidden from the model and from the loss, so that any id will do where the model has none for it."""
    return vocab.pad_id if vocab.pad_id is not None else vocab.eos_id or 0
