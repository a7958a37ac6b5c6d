"""One attempt at a run: from its start, or a checkpoint, to its end or to a loss spike that it rolls back from."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onmt_llm.data.pipeline import Pipeline
from onmt_llm.log import logger
from onmt_llm.training.checkpointing.resume import log_changes, resume, run_options, run_seed
from onmt_llm.training.checkpointing.saver import CheckpointSaver
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.loop import train_loop
from onmt_llm.training.metrics.build import build_reporter, data_metrics, open_hardware_monitor
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.rng import set_seed
from onmt_llm.training.process.signals import SignalHandler
from onmt_llm.training.result import RunStatus, TrainResult
from onmt_llm.training.run.build import build_components, build_validator
from onmt_llm.training.run.startup_log import log_start
from onmt_llm.training.run_folder import RunLock, newest_intact, remove_checkpoint, save_request_file
from onmt_llm.training.setup.inputs import open_generation_validator, open_pipelines
from onmt_llm.training.setup.performance import log_compile_time
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.state import Progress

# Norms of new blocks are float32 among frozen bf16 ones, for which torch has no fused kernel; without a GPU
# bitsandbytes does not page its moments, which the log says already.
_EXPECTED_WARNINGS = ("Mismatch dtype between input and weight", "Paged optimizers are not supported on CPU")


@dataclass(frozen=True)
class RunEnvironment:
    """What all attempts at a run share.

    Attributes:
        world: This process among the others.
        deadline: Value of `time.monotonic` at which the run stops; None = never.
        lock: The lock of the run's folder, on rank 0.
    """

    world: World
    deadline: float | None = None
    lock: RunLock | None = None


@dataclass(frozen=True)
class Rollback:
    """How a run continues after a loss spike.

    Attributes:
        checkpoint: The checkpoint to return to; None = the start of the run.
        position: This rank's data position, after the bucket with the spike.
        seed: The run's seed, which determines the order of the data.
        count: Rollbacks since the last regular checkpoint.
        written: Checkpoints that the run has written so far.
    """

    checkpoint: Path | None
    position: dict[str, Any]
    seed: int
    count: int
    written: list[Path]


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended.

    Attributes:
        result: Status and step; the result of the run unless there is a rollback.
        rollback: How the next attempt starts; None = there is none.
    """

    result: TrainResult
    rollback: Rollback | None = None


def run_attempt(setup: RunSetup, environment: RunEnvironment, rollback: Rollback | None) -> Attempt:
    """Build the components of a run and train.

    Args:
        setup: What the run is set up from.
        environment: What all attempts share.
        rollback: How this attempt starts after a loss spike; None = it is the first.
    """
    config, world = setup.config, environment.world
    seed = run_seed(config.run.seed, setup.saved, world) if rollback is None else rollback.seed
    set_seed(seed)
    generation = open_generation_validator(config, setup.start.codec)
    components = build_components(setup, world, seed=seed)
    train_data, valid_data = open_pipelines(config, setup.start.codec, seed=seed, world=world)
    progress = _restore(setup, components, train_data, rollback)
    log_start(setup, components, step=progress.step)
    validator = build_validator(components, valid_data, generation)
    monitor = open_hardware_monitor(config, components.model, components.precision, world.device)
    counts = partial(data_metrics, train_data, world)
    saver = CheckpointSaver(setup, components, train_data, seed, environment.lock)
    signals = SignalHandler(
        save_file=save_request_file(config.run.save_model),
        deadline=environment.deadline,
        save_every=config.safety.save_seconds,
        validate_every=config.safety.valid_seconds,
        checks=[saver.check],
    )
    with (
        _expected_warnings_ignored(),
        signals,  # until the last checkpoint is written
        saver,
        build_reporter(config, world, progress, data=counts, hardware=monitor.metrics) as reporter,
    ):
        if rollback is not None:
            saver.written += rollback.written
            if progress.step:
                # A run that is killed now must skip the same data, and must know how often it rolled back.
                saver(progress)
        elif setup.saved is not None:
            saver.written.append(setup.saved.directory.parent)
        batches = monitor.watch(train_data)
        batches = log_compile_time(batches) if config.performance.compile_blocks else batches
        status = train_loop(
            components, batches, progress, reporter=reporter, save=saver, validate=validator, signals=signals
        )
    code = 128 + (signals.signal or signal.SIGTERM) if status is RunStatus.INTERRUPTED else 0
    result = TrainResult(status, progress.step, saver.last, progress.best_ppl, code)
    if status is RunStatus.LOSS_SPIKE:
        return Attempt(result, roll_back(saver.written, train_data, world, seed=seed, count=progress.rollbacks + 1))
    logger.info("Data: %s", train_data.summary())
    return Attempt(result)


def roll_back(written: list[Path], data: Pipeline, world: World, *, seed: int, count: int) -> Rollback:
    """Choose the newest checkpoint of the run, the one before it at the second rollback, and so on.

    Args:
        written: Checkpoints of the run, in order.
        data: Batches for training; closed here.
        world: This process among the others.
        seed: The run's seed.
        count: Rollbacks since the last regular checkpoint, this one included.
    """
    existing = list(dict.fromkeys(path for path in written if path.exists()))
    path = ""
    if world.is_main:
        if count > 1 and len(existing) > 1:
            remove_checkpoint(existing.pop())
        path = str(newest_intact(existing, set_aside=True) or "")
    path = world.gather({"path": path})[0]["path"]
    logger.warning("The run goes back to %s.", path or "its start")
    data.skip_bucket()
    rollback = Rollback(Path(path) if path else None, data.state_dict(), seed, count, existing)
    data.close()
    return rollback


def _restore(setup: RunSetup, components: TrainingComponents, data: Pipeline, rollback: Rollback | None) -> Progress:
    """Restore the saved state, and the data position of a rollback."""
    progress = Progress()
    if setup.saved is not None:
        log_changes(setup.saved.options, run_options(setup))
        fresh_optimizer = setup.config.start.reset_optim == "states"
        progress = resume(setup.saved, components, data, fresh_optimizer=fresh_optimizer)
    if rollback is not None:
        data.load_state_dict(rollback.position)
        progress.rollbacks = rollback.count
    return progress


@contextmanager
def _expected_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield
