"""Sample the first micro-batches for `-dry_run`: their shape, and the memory of a bucket, in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice

from onmt_llm.config.train import TrainConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.spec import split_corpora
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec
from onmt_llm.training.dry_run.activations import BatchShape
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.host_memory import resident_memory
from onmt_llm.training.setup.inputs import open_pipeline

_BATCHES = 16
_FIRST = 256
"""Examples of the first sample, which shows how many can be read in the available time."""
_SECONDS = 4.0
"""Time for the second sample; a whole bucket of 262,144 examples may take more than a minute."""
_HEARTBEAT_S = 10.0


@dataclass(frozen=True)
class BatchSample:
    """The first micro-batches.

    Attributes:
        batch: Shape of the largest.
        examples: Number of examples that were read.
        is_whole: They are the micro-batches of the run itself, cut from a whole bucket.
        rest: Estimated bytes that a whole bucket takes in addition to the present memory of this process.
    """

    batch: BatchShape
    examples: int
    is_whole: bool
    rest: int


def sample_batches(config: TrainConfig, codec: Codec, world: World) -> BatchSample:
    """Cut micro-batches from a bucket of the run's size, or from a smaller one if that would take too long.

    Raises:
        DataError: A record is invalid, or the corpora yield no batch.
    """
    batching = config.batching
    whole = max(batching.bucket_size, batching.batch_size) if batching.batch_type == "sents" else batching.bucket_size
    if whole <= _FIRST:
        shape, examples = _sample(config, codec, world, whole)
        return BatchSample(shape, examples, is_whole=True, rest=0)
    began = time.monotonic()
    _sample(config, codec, world, _FIRST, quiet=True)
    before, spent = resident_memory(), time.monotonic() - began
    size = min(whole, max(_FIRST, int(_FIRST * _SECONDS / spent)))
    shape, examples = _sample(config, codec, world, size)
    if size == whole or examples < size:  # there are no more
        return BatchSample(shape, examples, is_whole=True, rest=0)
    growth = max(resident_memory() - before, 0) // max(size - _FIRST, 1)
    return BatchSample(shape, examples, is_whole=False, rest=growth * (whole - size))


def _sample(
    config: TrainConfig,
    codec: Codec,
    world: World,
    size: int,
    *,
    quiet: bool = False,
) -> tuple[BatchShape, int]:
    """Shape of the largest of the first micro-batches of buckets of `size`, and the number of examples read.

    Args:
        config: All options.
        codec: Text side of the model.
        world: This process.
        size: Examples of a bucket.
        quiet: Do not log what is found in the corpora.
    """
    batching = config.batching.model_copy(update={"bucket_size": size, "num_workers": 0})
    data = config.corpora
    if quiet and data.skip_empty_level == "warning":
        data = data.model_copy(update={"skip_empty_level": "silent"})
    config = config.model_copy(update={"batching": batching, "corpora": data})
    corpora, _ = split_corpora(data.data)
    with closing(open_pipeline(config, codec, corpora, training=True, seed=0, world=world, audited=quiet)) as pipeline:
        shapes = [_shape(batch) for batch in islice(pipeline, _BATCHES)]
        if not shapes:
            raise DataError(f"The corpora must yield at least one batch, but yield none: {pipeline.summary()}.")
        return max(shapes, key=lambda shape: shape.positions), sum(counts.read for counts in pipeline.counts.values())


def _shape(batch: Batch) -> BatchShape:
    rows, length = batch.tgt_BT.shape
    source = 0 if batch.src_BS is None else batch.src_BS.shape[1]
    return BatchShape(batch.num_examples, rows, length, source, packed=batch.doc_BT is not None)


@contextmanager
def heartbeat(what: str) -> Iterator[None]:
    """A context that logs every few seconds that the work is still in progress."""
    began, done = time.monotonic(), threading.Event()

    def log_progress() -> None:
        while not done.wait(_HEARTBEAT_S):
            logger.info("%s: %d s so far.", what, time.monotonic() - began)

    thread = threading.Thread(target=log_progress, name="onmt_llm-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
