"""Checks of options that depend on others. They need no torch: commands run them first."""

from __future__ import annotations

from collections.abc import Mapping

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.learning import REFERENCE_FREE, PreferenceConfig, ValidationConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.scorers import Scorer, open_scorers


def check_validation(settings: ValidationConfig, corpora: Mapping[str, CorpusConfig]) -> list[Scorer]:
    """The scorers of the options.

    Raises:
        ConfigError: A metric is unknown, or there is no validation corpus.
        UnsupportedError: A package is missing.
    """
    scorers = open_scorers(settings.valid_metrics)
    if scorers and not corpora:
        raise ConfigError("valid_metrics need a corpus named `valid` in `data`, but there is none.")
    if settings.early_stopping and not corpora:
        raise ConfigError("early_stopping needs a corpus named `valid` in `data`, but there is none.")
    return scorers


def check_in_backward(config: TrainConfig, world_size: int) -> None:
    """Check that no option needs all gradients at once if updates are done in the backward pass.

    Raises:
        ConfigError: Some options do; lists all of them.
    """
    run, limit = config.run, config.optimizer.max_grad_norm
    if not config.performance.optimizer_in_backward:
        return
    obstacles = []
    if set(run.accum_count) != {1}:
        obstacles.append(f"accum_count is {run.accum_count} (make batch_size larger instead)")
    if limit > 0:
        obstacles.append(f"max_grad_norm is {limit:g} (set it to 0)")
    if config.performance.model_dtype == "fp16":
        obstacles.append("model_dtype is fp16, where an update may have to be skipped (bf16 has no need of that)")
    if world_size > 1:
        obstacles.append(f"{world_size} processes sum their gradients")
    if obstacles:
        raise ConfigError(
            f"optimizer_in_backward must not meet options that need all gradients at once, but {'; '.join(obstacles)}."
        )


UNSHARDED_OPTIMIZERS = frozenset(
    {"adafactor", "muon", "adamw8bit", "pagedadamw8bit", "pagedadamw32bit", "lion8bit", "pagedlion8bit"}
)
"""Optimisers that need whole matrices, or kernels of their own."""


def check_sharding(config: TrainConfig, world_size: int, quant_type: str) -> None:
    """Check that no option needs whole weights if they are divided among the processes.

    Args:
        config: All options.
        world_size: Number of processes.
        quant_type: Number format of the quantised layers; empty = there are none.

    Raises:
        ConfigError: Some options do; lists all of them.
    """
    devices, optim = config.devices, config.optimizer.optim
    if devices.shard == "off" and config.safety.checkpoint_shards == "on":
        raise ConfigError(
            "checkpoint_shards: on must go with divided weights, but shard is off.",
            hint="set shard: full, or leave checkpoint_shards out",
        )
    if devices.shard == "off" or world_size == 1:
        return
    if devices.shard_size and world_size % devices.shard_size:
        raise ConfigError(
            f"'shard_size' must divide the number of processes, {world_size}, but is {devices.shard_size}."
        )
    obstacles = []
    if optim in UNSHARDED_OPTIMIZERS:
        obstacles.append(f"optim is {optim}, which needs whole matrices (adamw, adam, sgd, lion and adagrad do not)")
    if config.performance.optimizer_in_backward:
        obstacles.append("optimizer_in_backward is set")
    if quant_type.startswith("bnb"):
        obstacles.append(f"quant_type is {quant_type} (int8 can be sharded)")
    if obstacles:
        raise ConfigError(f"`shard: full` must not meet options that need whole weights, but {'; '.join(obstacles)}.")


def check_reference(objective: str, settings: PreferenceConfig, *, adapters: bool) -> None:
    """Check that a preference loss has the reference model that it needs.

    Raises:
        ConfigError: The whole model is trained, and no reference model is named.
    """
    if objective not in REFERENCE_FREE and not adapters and settings.reference_model is None:
        raise ConfigError(
            f"objective: {objective} must have a reference model if the whole model is trained: name one with "
            "reference_model.",
            hint="usually the model of train_from; with LoRA, the model without its adapters is the reference",
        )
