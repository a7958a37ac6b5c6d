"""Checks of options that depend on others. They need no torch: commands run them first."""

from __future__ import annotations

from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.config.data import is_for_validation
from onmt_llm.config.learning import REFERENCE_FREE, PreferenceConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.scorers import Scorer, open_scorers


def check_validation(config: TrainConfig) -> list[Scorer]:
    """The scorers of the options.

    Raises:
        ConfigError: A metric is unknown, or there is no validation corpus.
        UnsupportedError: A package is missing.
    """
    scorers = open_scorers(config.validation.valid_metrics)
    needing = {
        "valid_metrics": scorers,
        "early_stopping": config.validation.early_stopping,
        "save_best": config.safety.save_best,
        "valid_time": config.safety.valid_time,
    }
    wanted = [name for name, value in needing.items() if value]
    if wanted and not any(map(is_for_validation, config.corpora.data)):
        raise ConfigError(f"{' and '.join(wanted)} must have a corpus named `valid` in `data`, but there is none.")
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
            "optimizer_in_backward must not be combined with options that need all gradients at once, but "
            f"{'; '.join(obstacles)}."
        )


UNSHARDED_OPTIMIZERS = frozenset(
    {"adafactor", "galore", "muon", "adamw8bit", "pagedadamw8bit", "pagedadamw32bit", "lion8bit", "pagedlion8bit"}
)
"""Optimisers that need whole matrices, or kernels of their own."""


def check_sharding(config: TrainConfig, world_size: int, quant_type: str) -> None:
    """Check that no option needs whole weights if they are sharded among the processes.

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
            "checkpoint_shards: on needs sharded weights, but shard is off.",
            hint="set shard: full, or leave checkpoint_shards out",
        )
    if devices.shard != "full" or world_size == 1:
        return
    ranks = world_size // devices.tensor_parallel
    if devices.shard_size and ranks % devices.shard_size:
        what = "processes" if devices.tensor_parallel == 1 else "groups of processes"
        raise ConfigError(f"'shard_size' must divide the number of {what}, {ranks}, but is {devices.shard_size}.")
    obstacles = []
    if optim in UNSHARDED_OPTIMIZERS:
        obstacles.append(f"optim is {optim}, which needs whole matrices (adamw, adam, sgd, lion and adagrad do not)")
    if config.performance.optimizer_in_backward:
        obstacles.append("optimizer_in_backward is set")
    if quant_type.startswith("bnb"):
        obstacles.append(f"quant_type is {quant_type} (int8 can be sharded)")
    if config.performance.offload_activations:
        obstacles.append("offload_activations is set (use_ckpting saves memory too)")
    if obstacles:
        sentence = "`shard: full` must not be combined with options that need whole weights"
        raise ConfigError(f"{sentence}, but {'; '.join(obstacles)}.")


def check_tensor_parallel(
    config: TrainConfig,
    model: ModelConfig,
    world_size: int,
    *,
    adapter: AdapterSpec | None = None,
    quant_type: str = "",
) -> None:
    """Check that `tensor_parallel` processes can compute each block together.

    Args:
        config: All options.
        model: Architecture of the model.
        world_size: Number of processes.
        adapter: Settings of the adapters; None = there are none.
        quant_type: Number format of the quantised layers; empty = there are none.

    Raises:
        ConfigError: The number does not fit, or the model has parts that it does not divide; lists all of them.
    """
    number = config.devices.tensor_parallel
    if number == 1:
        return
    sizes = model.divided_sizes
    obstacles = [f"{name} is {size}, which {number} does not divide" for name, size in sizes.items() if size % number]
    if world_size % number:
        obstacles.append(f"world_size is {world_size}, which {number} does not divide")
    objective, init = config.corpora.objective, "default" if adapter is None else adapter.init
    has_reference = objective != "sft" and objective not in REFERENCE_FREE
    unsupported = {
        "use_dora": adapter is not None and adapter.dora,
        f"lora_init: {init} with objective: {objective}": init != "default" and has_reference,
        f"quant_type: {quant_type}": quant_type.startswith("bnb"),
        "latent attention": bool(model.latent.kv_rank),
        f"position: {model.position}": model.position in ("t5", "alibi"),
        "lambda_align": config.loss.lambda_align > 0,
        "compile_blocks": config.performance.compile_blocks,
        f"optim: {config.optimizer.optim}": config.optimizer.optim in UNSHARDED_OPTIMIZERS,
        "optimizer_in_backward": config.performance.optimizer_in_backward,
        "offload_activations": config.performance.offload_activations,
        "valid_metrics": bool(config.validation.valid_metrics),
    }
    if names := [name for name, is_used in unsupported.items() if is_used]:
        obstacles.append(f"it does not work with {', '.join(names)} (`shard: full` shards more models)")
    if obstacles:
        raise ConfigError(f"tensor_parallel must fit the model and the run, but {'; '.join(obstacles)}.")


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
