"""Going on with a run: where it stands, what it keeps, and what the user wants otherwise."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from onmt_llm.checkpoint.paths import resolve_path
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.training.optimizer import OptimConfig
from onmt_llm.config.training.start import AUTO
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import CheckpointError, DataError
from onmt_llm.log import logger
from onmt_llm.training.dist import World
from onmt_llm.training.loop import Job
from onmt_llm.training.run_folder import check_intact, newest_of_run
from onmt_llm.training.setup.model import Layers
from onmt_llm.training.setup.start import Start
from onmt_llm.training.state import STATE_DIRECTORY, Progress, SavedState, load_optimizer, set_rng_state
from onmt_llm.training.validation.early_stopping import EarlyStopping

# Where a run begins and what it writes to: not what it computes.
_PLACES = frozenset({"save_model", "train_from", "init_from", "reset_optim", "update_vocab", "override_opts", "seed"})


def with_start(config: TrainConfig, update: Mapping[str, Any]) -> TrainConfig:
    """The options with other values in their section `start`."""
    return config.model_copy(update={"start": config.start.model_copy(update=update)})


def continued(path: str) -> dict[str, Any]:
    """Values of section `start` that resume a run from its own checkpoint, unchanged."""
    return {"train_from": path, "init_from": None, "reset_optim": "none", "update_vocab": False}


def settle_start(config: TrainConfig, *, set_aside: bool = False) -> dict[str, Any]:
    """Make sure of what the run begins with; what `train_from: auto` means, as values for `with_start`.

    Args:
        config: The options.
        set_aside: Rename damaged checkpoints of the run, so that they count no longer.

    Raises:
        CheckpointError: The checkpoint to be resumed is missing, or is not as it was written.
    """
    start, save_model = config.start, config.run.save_model
    if start.train_from is None:
        return {}
    if start.train_from != AUTO:
        path = resolve_path(start.train_from)
        if (path / STATE_DIRECTORY).is_dir() and start.reset_optim != "all":
            check_intact(path)
        return {}
    newest = newest_of_run(save_model, set_aside=set_aside)
    if newest is not None:
        logger.info("train_from auto: the run goes on from %s.", newest)
        return continued(str(newest))
    logger.info("train_from auto: there is no checkpoint of %s yet, so that the run begins.", save_model)
    return {"train_from": start.init_from, "init_from": None, "reset_optim": "all" if start.init_from else "none"}


def settled(config: TrainConfig) -> TrainConfig:
    """The options as the run takes them at this moment: with the checkpoint that `train_from: auto` means.

    Raises:
        CheckpointError: As `settle_start`.
    """
    return with_start(config, settle_start(config))


def state_to_resume(config: TrainConfig, start: Start, layers: Layers) -> SavedState | None:
    """The training state to go on from; None where the run begins at step 0."""
    if start.saved is None or config.start.reset_optim == "all":
        return None
    if start.before is not None and config.start.reset_optim != "states":
        logger.info(
            "update_vocab: %s was trained with another vocabulary: a new run begins, at step 0 with a new optimiser "
            "(reset_optim: states keeps the step).",
            config.start.train_from,
        )
        return None
    if (layers.lora is not None and start.adapter is None) or start.is_newly_expanded:
        what = "LoRA" if start.expansion is None else "expanded blocks"
        logger.info("%s was trained as a whole: with %s a new run begins, at step 0.", config.start.train_from, what)
        return None
    return start.saved


def is_done(config: TrainConfig, resumed: SavedState) -> bool:
    """Whether the run has reached its end already; says so."""
    train_from, train_steps, done = config.start.train_from, config.run.train_steps, resumed.progress.step
    if done >= train_steps:
        logger.info("Nothing to do: %s is of step %d, and train_steps is %d.", train_from, done, train_steps)
        return True
    stopping = EarlyStopping(config.validation.early_stopping, config.validation.early_stopping_criteria)
    left = stopping.left(resumed.progress)
    if left is not None and left <= 0:
        logger.info(
            "Nothing to do: %s stopped early at step %d, after %d validations without better %s.",
            *(train_from, done, stopping.patience, " and ".join(stopping.criteria)),
        )
        return True
    return False


def run_options(config: TrainConfig) -> dict[str, Any]:
    """What is kept beside the optimiser's settings, to be compared with when the run goes on."""
    sections = (config.start, config.run, config.regularization, config.performance, config.batching)
    return {
        name: value for kept in sections for name, value in kept.model_dump(mode="json", exclude=set(_PLACES)).items()
    }


def resumed_settings(wanted: OptimConfig, resumed: SavedState | None, *, reset: str) -> OptimConfig:
    """Settings of the optimiser: those of the run that goes on, under what the user wrote.

    Args:
        wanted: The user's.
        resumed: The state to go on from.
        reset: `reset_optim`; `keep_states` forgets the saved settings.
    """
    if resumed is None or reset == "keep_states":
        return wanted
    written = wanted.model_dump(mode="json", exclude_unset=True)
    log_changes(resumed.settings, written)
    known = {name: value for name, value in resumed.settings.items() if name in OptimConfig.model_fields}
    return OptimConfig.model_validate({**known, **written})


def log_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say which options have another value than when the run was saved."""
    for name, value in now.items():
        if name in before and before[name] != value:
            logger.info("%s is %s now; it was %s.", name, value, before[name])


def run_seed(wanted: int, resumed: SavedState | None, world: World) -> int:
    """The run's seed, equal on all ranks; a run that goes on keeps its own unless the user wants another."""
    if wanted >= 0:
        return wanted
    if resumed is not None:
        return resumed.seed
    drawn = world.gather({"seed": secrets.randbelow(2**31)})[0]["seed"]
    logger.info("Seed of this run: %d.", drawn)
    return int(drawn)


def resume(saved: SavedState, job: Job, pipeline: Pipeline, *, fresh_optimizer: bool = False) -> Progress:
    """Put optimiser, random generators and data back to where they were; returns how far that is.

    Args:
        saved: The state to resume from.
        job: The run.
        pipeline: This rank's training data.
        fresh_optimizer: Keep the step, but not the optimiser's state (`reset_optim: states`).

    Raises:
        CheckpointError: The state does not say where that was, as happens where damage is ignored.
    """
    try:
        return _resume(saved, job, pipeline, fresh_optimizer=fresh_optimizer)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{saved.directory} is not a valid training state ({type(error).__name__}: {error}).",
            hint="go on from an older checkpoint, or begin with these weights: -reset_optim all",
        ) from error


def _resume(saved: SavedState, job: Job, pipeline: Pipeline, *, fresh_optimizer: bool) -> Progress:
    if fresh_optimizer:
        logger.info("reset_optim: the optimiser begins anew at step %d.", saved.progress.step)
    elif saved.optimizer != job.optimizer_name:
        logger.warning("The state of %s cannot serve %s, which begins anew.", saved.optimizer, job.optimizer_name)
    else:
        load_optimizer(saved, job.model, job.optimizer)
    if job.average is not None:
        job.average.load(saved.directory.parent)
    _restore(saved, pipeline, job.world)
    return saved.progress


def _restore(saved: SavedState, pipeline: Pipeline, world: World) -> None:
    """Put random generators and data position of this rank back to where they were saved.

    Another number of ranks goes on with the very same data, dealt anew; their random generators are those of a new run.
    """
    fresh = pipeline.state_dict()
    try:
        pipeline.load_state_dict(*(rank["data"] for rank in saved.ranks))
    except DataError as error:
        # Going on with other corpora is a wish like any other; that the position is lost has to be said.
        logger.warning("The data begins anew: %s", error.message)
        pipeline.load_state_dict(fresh)
    if len(saved.ranks) != world.size:
        logger.info("The run was saved by %d processes and goes on with %d.", len(saved.ranks), world.size)
        return
    set_rng_state(saved.ranks[world.rank]["rng"], world.device)
