"""Find the checkpoint that `train_from` means, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onmt_llm.checkpoint.directory import resolve_path
from onmt_llm.config.train import AUTO, TrainConfig
from onmt_llm.log import logger
from onmt_llm.training.run_folder import STATE_DIRECTORY, check_intact, newest_of_run


def with_start_options(config: TrainConfig, update: Mapping[str, Any]) -> TrainConfig:
    """The options with other values in the section `start`."""
    return config.model_copy(update={"start": config.start.model_copy(update=update)})


def resume_update(path: str) -> dict[str, Any]:
    """Values of the section `start` for a run that resumes its own checkpoint unchanged."""
    return {"train_from": path, "init_from": None, "reset_optim": "none", "update_vocab": False}


def train_from_update(config: TrainConfig, *, set_aside: bool = False) -> dict[str, Any]:
    """Check the checkpoint to resume; what `train_from: auto` means, as values for `with_start_options`.

    Args:
        config: All options.
        set_aside: Rename damaged checkpoints of the run, so that they are ignored from now on.

    Raises:
        CheckpointError: The checkpoint to resume is missing or damaged.
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
        logger.info("train_from auto: resuming from %s.", newest)
        return resume_update(str(newest))
    logger.info("train_from auto: there is no checkpoint of %s yet: starting a new run.", save_model)
    return {"train_from": start.init_from, "init_from": None, "reset_optim": "all" if start.init_from else "none"}


def resolve_train_from(config: TrainConfig) -> TrainConfig:
    """The options with the checkpoint that `train_from: auto` means now.

    Raises:
        CheckpointError: As `train_from_update`.
    """
    return with_start_options(config, train_from_update(config))
