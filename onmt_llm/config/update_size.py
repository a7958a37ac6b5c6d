"""`global_batch_size` and `max_tokens`: options of a whole run, from which those of each process are derived."""

from __future__ import annotations

import math

from onmt_llm.config.data import BatchConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError


def for_processes(config: TrainConfig, processes: int) -> TrainConfig:
    """The options with `accum_count` of `global_batch_size`, and `train_steps` of `max_tokens`.

    Args:
        config: All options.
        processes: Number of processes.

    Raises:
        ConfigError: The micro-batches of the processes do not add up to `global_batch_size`.
    """
    run, batching = config.run, config.batching
    readers = max(1, processes // config.devices.tensor_parallel)
    if run.global_batch_size:
        each = batching.batch_size * readers
        if run.global_batch_size % each:
            raise ConfigError(
                f"'global_batch_size' must be a multiple of batch_size x processes that read, "
                f"{batching.batch_size} x {readers} = {each}, but is {run.global_batch_size}.",
                hint=f"global_batch_size: {max(1, round(run.global_batch_size / each)) * each}, or another batch_size",
            )
        accumulated = {"accum_count": [run.global_batch_size // each], "accum_steps": [0]}
        run = run.model_copy(update=accumulated)
    if run.max_tokens:
        update = row_tokens(batching) * batching.batch_size * run.accum_count[0] * readers
        run = run.model_copy(update={"train_steps": max(1, math.ceil(run.max_tokens / update))})
    return config if run is config.run else config.model_copy(update={"run": run})


def row_tokens(batching: BatchConfig) -> int:
    """Tokens that one unit of `batch_size` stands for with packing: a row, or a token."""
    return 1 if batching.batch_type == "tokens" else batching.packing_length or 1
