"""Resuming a run: its position, its settings, and what the user changed."""

from __future__ import annotations

import secrets
from typing import Any

from onmt_llm.config.learning import OptimConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import CheckpointError, DataError
from onmt_llm.log import logger
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.rng import set_rng_state
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.state import Progress, SavedState, load_optimizer
from onmt_llm.training.validation.early_stopping import EarlyStopping

# Options for what a run starts from and where it writes, which do not change what it computes.
_PATHS = frozenset({"save_model", "train_from", "init_from", "reset_optim", "update_vocab", "override_opts", "seed"})
_PATHS |= {"index_cache", "save_data", "n_sample", "dump_samples", "overwrite", "dump_preds", "scoring_debug"}


def is_done(config: TrainConfig, resumed: SavedState) -> bool:
    """Whether the run has reached its end already, which is logged."""
    train_from, train_steps, done = config.start.train_from, config.run.train_steps, resumed.progress.step
    if done >= train_steps:
        logger.info("Nothing to do: %s is of step %d, and train_steps is %d.", train_from, done, train_steps)
        return True
    stopping = EarlyStopping(config.validation.early_stopping, config.validation.early_stopping_criteria)
    left = stopping.left(resumed.progress)
    if left is not None and left <= 0:
        logger.info(
            "Nothing to do: %s stopped early at step %d, after %s.",
            *(train_from, done, stopping.reason),
        )
        return True
    return False


def run_options(setup: RunSetup) -> dict[str, Any]:
    """The options that are saved with the optimiser's settings, to log changes when the run is resumed. Of each corpus
    only what differs from the defaults, and of quantisation what is in effect, since an adapter keeps its own."""
    config, layers = setup.config, setup.layers
    data = config.corpora
    sections = (
        *(config.start, config.run, config.regularization, config.performance, config.batching),
        *(config.loss, config.preference, config.validation, config.quantization),
        *(data, *data.transform_options.values()),
    )
    quantised = {"quant_layers": list(layers.quantised), "quant_type": layers.quant_type}
    corpora = {name: corpus.model_dump(mode="json", exclude_defaults=True) for name, corpus in data.data.items()}
    return {
        name: value
        for section in sections
        for name, value in section.model_dump(mode="json", exclude=set(_PATHS)).items()
    } | {"data": corpora, **quantised}


def resumed_settings(wanted: OptimConfig, resumed: SavedState | None, *, reset: str) -> OptimConfig:
    """Settings of the optimiser: those of the resumed run, overridden by what the user wrote.

    Args:
        wanted: The options.
        resumed: The state to resume; None = a new run.
        reset: `reset_optim`; `keep_states` ignores the saved settings.
    """
    if resumed is None or reset == "keep_states":
        return wanted
    written = wanted.model_dump(mode="json", exclude_unset=True)
    log_changes(resumed.settings, written)
    known = {name: value for name, value in resumed.settings.items() if name in OptimConfig.model_fields}
    return OptimConfig.model_validate({**known, **written})


def log_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Log the options that have changed since the run was saved."""
    for name, value in now.items():
        if name in before:
            _log_change(name, before[name], value)


def _log_change(name: str, before: Any, now: Any) -> None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            _log_change(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        logger.info(
            "%s is %s now; it was %s.", name, *("not set" if each in (None, "") else each for each in (now, before))
        )


def run_seed(wanted: int, resumed: SavedState | None, world: World) -> int:
    """The run's seed, equal on all ranks; a resumed run keeps its own unless the user sets another."""
    if wanted >= 0:
        return wanted
    if resumed is not None:
        return resumed.seed
    drawn = world.gather({"seed": secrets.randbelow(2**31)})[0]["seed"]
    logger.info("Seed of this run: %d.", drawn)
    return int(drawn)


def resume(
    saved: SavedState, components: TrainingComponents, pipeline: Pipeline, *, fresh_optimizer: bool = False
) -> Progress:
    """Restore optimiser, random generators and data position; returns the progress of the run.

    Args:
        saved: The state to resume.
        components: Model, optimiser and settings.
        pipeline: This rank's training data.
        fresh_optimizer: Keep the step, but not the optimiser's state (`reset_optim: states`).

    Raises:
        CheckpointError: The state is invalid, which can happen if damage is ignored.
    """
    try:
        return _resume(saved, components, pipeline, fresh_optimizer=fresh_optimizer)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{saved.directory} is not a valid training state ({type(error).__name__}: {error}).",
            hint="resume from an older checkpoint, or start a new run with these weights: -reset_optim all",
        ) from error


def _resume(
    saved: SavedState, components: TrainingComponents, pipeline: Pipeline, *, fresh_optimizer: bool
) -> Progress:
    if fresh_optimizer:
        logger.info("reset_optim: the optimiser starts without state at step %d.", saved.progress.step)
    elif saved.optimizer != components.optimizer_name:
        logger.warning(
            "The state of %s does not fit %s, which starts without state.", saved.optimizer, components.optimizer_name
        )
    else:
        load_optimizer(saved, components.model, components.optimizer)
    if components.ema is not None:
        components.ema.load(saved.directory.parent)
    _restore(saved, pipeline, components.world)
    return saved.progress


def _restore(saved: SavedState, pipeline: Pipeline, world: World) -> None:
    """Restore the random generators and the data position of this rank.

    With another number of ranks the run continues with exactly the same data, redistributed; its random generators are
    those of a new run.
    """
    fresh = pipeline.state_dict()
    try:
        pipeline.load_state_dict(*(rank["data"] for rank in saved.ranks))
    except DataError as error:
        # Resuming with other corpora is allowed, but the user must know that the data position is lost.
        logger.warning("The data starts from the beginning: %s", error.message)
        pipeline.load_state_dict(fresh)
    if len(saved.ranks) != world.data_size:
        logger.info("The data was read by %d processes before, and is by %d now.", len(saved.ranks), world.data_size)
        return
    set_rng_state(saved.ranks[world.data_rank]["rng"], world.device)
