"""`train`: the entry point of training, which repeats attempts at a run until one ends without a rollback."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import torch

from onmt_llm.config.train import TrainConfig
from onmt_llm.config.update_size import for_processes
from onmt_llm.nn.cpu.openmp import watch
from onmt_llm.training.checkpointing.resume import is_done
from onmt_llm.training.checkpointing.train_from import (
    resolve_train_from,
    resume_update,
    train_from_update,
    with_start_options,
)
from onmt_llm.training.checks import check_in_backward
from onmt_llm.training.dry_run.estimate import resolve_sharding
from onmt_llm.training.metrics.sinks import check_trackers
from onmt_llm.training.process.dist import World, is_lost_process, open_world
from onmt_llm.training.process.host_memory import limit_onednn_cache
from onmt_llm.training.process.pulse import lost_process
from onmt_llm.training.result import RunStatus, TrainResult, status_file, write_status
from onmt_llm.training.run.attempt import Rollback, RunEnvironment, run_attempt
from onmt_llm.training.run_folder import check_checkpoint_paths, run_lock
from onmt_llm.training.setup.inputs import sample
from onmt_llm.training.setup.performance import check_device
from onmt_llm.training.setup.run_setup import RunSetup, check_parallelism, open_run_setup
from onmt_llm.training.setup.start import open_start


def train(config: TrainConfig) -> TrainResult:
    """Train as `config` says.

    Args:
        config: All options.

    Raises:
        OnmtLlmError: Anything that the user can fix; see its subclasses in `errors`.
    """
    began = time.monotonic()
    limit_onednn_cache()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.corpora.n_sample:
        config = resolve_train_from(config)
        sample(config, open_start(config).codec)
        return TrainResult(RunStatus.SAMPLED)
    check_trackers(wandb=config.watching.wandb, mlflow=config.watching.mlflow)
    world = open_world(config.devices.device, config.devices.world_size, config.devices.tensor_parallel)
    config = for_processes(config, world.size)
    check_in_backward(config, world.size)
    check_device(config.performance, world.device.type)
    watch(world.device.type)
    limit = config.safety.max_seconds
    deadline = None if limit is None else began + limit
    try:
        with run_lock(config.run.save_model) if world.is_main else nullcontext() as lock:
            config = _resolved_on_all_ranks(config, world)
            return _train_until_done(config, RunEnvironment(world, deadline, lock))
    except RuntimeError as error:
        if world.size > 1 and is_lost_process(error):
            raise lost_process(world) from error
        raise
    finally:
        world.close()


def _resolved_on_all_ranks(config: TrainConfig, world: World) -> TrainConfig:
    """The options with the checkpoint that rank 0 finds for `train_from`."""
    update = train_from_update(config, set_aside=True) if world.is_main else {}
    return with_start_options(config, world.gather(update)[0])


def _train_until_done(config: TrainConfig, environment: RunEnvironment) -> TrainResult:
    """Train; after each rollback, train again from the checkpoint that it names."""
    rollback: Rollback | None = None
    while True:
        setup = open_run_setup(config)
        if setup.saved is not None and is_done(config, setup.saved):
            progress = setup.saved.progress
            checkpoint = Path(str(config.start.train_from))
            result = TrainResult(RunStatus.ALREADY_DONE, progress.step, checkpoint, progress.best_ppl)
            return _ended(result, config, environment)
        setup = resolve_sharding(setup, environment.world)
        config = setup.config
        _check_checkpoint_paths(setup)
        check_parallelism(setup, environment.world.size)
        if environment.world.is_main:
            status_file(config.run.save_model).unlink(missing_ok=True)
        attempt = run_attempt(setup, environment, rollback)
        if attempt.rollback is None:
            return _ended(attempt.result, config, environment)
        rollback = attempt.rollback
        if rollback.checkpoint is not None:
            config = with_start_options(config, resume_update(str(rollback.checkpoint)))


def _ended(result: TrainResult, config: TrainConfig, environment: RunEnvironment) -> TrainResult:
    """The result, which is written for those who watch the run's checkpoints."""
    if environment.world.is_main and config.run.keep_checkpoint:
        write_status(config.run.save_model, result)
    return result


def _check_checkpoint_paths(setup: RunSetup) -> None:
    """Check that the run's checkpoints can be written."""
    run, start, done = setup.config.run, setup.start, 0 if setup.saved is None else setup.saved.progress.step
    bases = [checkpoint.path for checkpoint in (start.weights, start.adapter) if checkpoint is not None]
    if run.keep_checkpoint:
        steps, inputs = range(done + 1, run.train_steps + 1), [*bases, *setup.companions]
        check_checkpoint_paths(run.save_model, steps, every=run.save_checkpoint_steps, inputs=inputs)
