"""`train` and `plan`: what `onmt_llm_train` calls. Here the parts are composed; each is a file beside this one."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onmt_llm.config.section import Section
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.corpus import split_corpora
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.log import logger
from onmt_llm.nn.cpu.openmp import watch
from onmt_llm.nn.device import resolve_device
from onmt_llm.nn.kernels import attention_kernel
from onmt_llm.nn.lora.model import lora_modules
from onmt_llm.nn.quantized import is_quantized
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.checkpointing.resume import (
    continued,
    is_done,
    log_changes,
    resume,
    resumed_settings,
    run_options,
    run_seed,
    settle_start,
    settled,
    state_to_resume,
    with_start,
)
from onmt_llm.training.checkpointing.saver import Saver, with_base
from onmt_llm.training.checks import check_in_backward, check_reference, check_validation
from onmt_llm.training.dist import World, open_world
from onmt_llm.training.dry_run.activations import Kept
from onmt_llm.training.dry_run.plan import Plan, count, estimate_memory
from onmt_llm.training.dry_run.sampling import heartbeat, sample_batches
from onmt_llm.training.host_memory import keep_few_products, resident_memory
from onmt_llm.training.loop import Job, train_loop
from onmt_llm.training.loss_spikes import Watchdog
from onmt_llm.training.losses.objective import open_alignment
from onmt_llm.training.metrics.build import build_reporter, data_figures, metrics_path, open_machine, told_apart
from onmt_llm.training.metrics.profiler import Profiler
from onmt_llm.training.metrics.sinks import check_trackers
from onmt_llm.training.optim.build import build_optimizer
from onmt_llm.training.optim.ema import Average
from onmt_llm.training.optim.precision import choose_precision
from onmt_llm.training.optim.registry import check_package
from onmt_llm.training.optim.schedule import build_schedule
from onmt_llm.training.run_folder import (
    RunLock,
    check_places,
    checkpoints,
    discard,
    newest_intact,
    run_lock,
    save_request,
)
from onmt_llm.training.setup.compile import compile_blocks, timed
from onmt_llm.training.setup.inputs import open_objective, open_pipelines, open_translations, sample
from onmt_llm.training.setup.model import Layers, build, check_device, resolve_layers, sketch
from onmt_llm.training.setup.start import Start, open_start
from onmt_llm.training.signals import Requests
from onmt_llm.training.state import Progress, SavedState
from onmt_llm.training.validation.early_stopping import EarlyStopping
from onmt_llm.training.validation.validate import Judge


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: "finished", "stopped early", "interrupted", "out of time", "already done" or "sampled".
        step: Updates done in all.
        checkpoint: The newest checkpoint; None when none was written.
        best_ppl: Best validation perplexity; inf without validation.
        exit_code: Of the command: 0, or the shell's code for the signal that ended the run.
    """

    status: str
    step: int = 0
    checkpoint: Path | None = None
    best_ppl: float = float("inf")
    exit_code: int = 0


@dataclass(frozen=True)
class Detour:
    """How a run goes on after a leap of the loss: from an earlier checkpoint, with later data.

    Attributes:
        position: This rank's data position.
        seed: The run's seed, on which the order of the data depends.
        count: How often the run went back since it last saved in the ordinary way.
        written: Checkpoints of the run so far.
    """

    position: dict[str, Any]
    seed: int
    count: int
    written: list[Path]


def train(config: TrainConfig, options: Mapping[str, Section]) -> TrainResult:
    """Train as `config` says.

    Args:
        config: All options.
        options: Sections of the transforms, by name.

    Raises:
        OnmtLlmError: Anything that the user can put right; see the subclasses in `errors`.
    """
    began = time.monotonic()
    keep_few_products()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.corpora.n_sample:
        config = settled(config)
        sample(config, options, open_start(config, options))
        return TrainResult("sampled")
    check_trackers(wandb=config.watching.wandb, mlflow=config.watching.mlflow)
    world = open_world(config.devices.device, config.devices.world_size)
    check_in_backward(config, world.size)
    check_device(config.performance, world.device.type)
    watch(world.device.type)
    limit = config.safety.max_seconds
    deadline = None if limit is None else began + limit
    try:
        with run_lock(config.run.save_model) if world.is_main else nullcontext() as lock:
            return _train_until_done(_settled(config, world), options, world, deadline=deadline, lock=lock)
    finally:
        world.close()


def _settled(config: TrainConfig, world: World) -> TrainConfig:
    """The options with what rank 0 finds out about `train_from`, on all ranks."""
    mine = settle_start(config, set_aside=True) if world.is_main else {}
    return with_start(config, world.gather(mine)[0])


def _train_until_done(
    config: TrainConfig, options: Mapping[str, Section], world: World, *, deadline: float | None, lock: RunLock | None
) -> TrainResult:
    """Train, from an earlier checkpoint again whenever the watchdog wants it."""
    detour: Detour | None = None
    while True:
        start = open_start(config, options)
        layers = resolve_layers(config, start)
        resumed = state_to_resume(config, start, layers)
        if resumed is not None and is_done(config, resumed):
            progress = resumed.progress
            return TrainResult("already done", progress.step, Path(str(config.start.train_from)), progress.best_ppl)
        _check_places(config, start, resumed)
        result = _train(config, options, start, layers, resumed, world, deadline=deadline, lock=lock, detour=detour)
        if isinstance(result, TrainResult):
            return result
        config, detour = result


def _train(
    config: TrainConfig,
    options: Mapping[str, Section],
    start: Start,
    layers: Layers,
    resumed: SavedState | None,
    world: World,
    *,
    deadline: float | None,
    lock: RunLock | None,
    detour: Detour | None,
) -> TrainResult | tuple[TrainConfig, Detour]:
    """One stretch of training; returns its result, or how to go on after a leap of the loss."""
    run, performance, safety = config.run, config.performance, config.safety
    seed = run_seed(run.seed, resumed, world) if detour is None else detour.seed
    set_seed(seed)
    optim = resumed_settings(config.optimizer, resumed, reset=config.start.reset_optim)
    translations = open_translations(config, options, start)
    objective = open_objective(config, optim, start, layers, world.device)
    precision = choose_precision(
        performance.model_dtype,
        lora=layers.lora is not None,
        expanded=layers.expansion is not None,
        loss_scale=optim.loss_scale,
        device=world.device,
        pure_bf16=performance.pure_bf16,
    )
    spec = None
    if layers.beside_base is not None:
        assert start.weights is not None
        spec = with_base(layers.beside_base, start.weights)
    model = build(config, start, layers, precision, world)
    if performance.compile_blocks:
        compile_blocks(model, world.device)
    # From here on ranks must differ: each has dropout of its own.
    set_seed(seed + world.rank)

    job = Job(
        model=model,
        optimizer=build_optimizer(model, optim, pure_bf16=performance.pure_bf16),
        schedule=build_schedule(optim, train_steps=run.train_steps, hidden_size=start.model.hidden_size),
        precision=precision,
        world=world,
        run=run,
        optim=optim,
        regularization=config.regularization,
        performance=performance,
        objective=objective,
        stopping=EarlyStopping(config.validation.early_stopping, config.validation.early_stopping_criteria),
        average=Average(model, decay=optim.average_decay, every=optim.average_every) if optim.average_decay else None,
        watchdog=Watchdog(safety.spike_action, threshold=safety.spike_threshold, window=safety.spike_window),
        profiler=Profiler(
            config.watching.profile_steps,
            Path(f"{run.save_model}_profile"),
            rank=world.rank,
            flops=config.watching.profile_flops,
        ),
        save_best=safety.save_best,
        corpora=len(told_apart(config.corpora)),
    )
    train_data, valid_data = open_pipelines(config, options, start, seed=seed, world=world)
    progress, told = Progress(), run_options(config)
    if resumed is not None:
        log_changes(resumed.options, told)
        progress = resume(resumed, job, train_data, fresh_optimizer=config.start.reset_optim == "states")
    if detour is not None:
        train_data.load_state_dict(detour.position)
        progress.rollbacks = detour.count
    _announce(config, start, layers, job, progress)
    judge = None
    if valid_data:
        judge = Judge(model, valid_data, precision, world, job.average, translations, objective.judged)
    machine = open_machine(config, model, precision, world.device)
    with (
        Saver(job, start, spec, train_data, seed, told, safety, _other_models(config), lock) as save,
        build_reporter(
            config, world, progress, data=partial(data_figures, train_data, world), machine=machine.figures
        ) as report,
    ):
        if detour is not None:
            save.written += detour.written
        elif resumed is not None:
            save.written.append(resumed.directory.parent)
        if detour is not None and progress.step:
            # So that a run that is killed now goes past the same data, and knows how often it did.
            save(progress)
        requests = Requests(save_file=save_request(run.save_model), deadline=deadline, checks=[save.check])
        batches = machine.watch(train_data)
        batches = timed(batches) if performance.compile_blocks else batches
        status = train_loop(job, batches, progress, report=report, save=save, validate=judge, requests=requests)
    if status == "leapt":
        return _go_back(config, save, train_data, world, seed=seed, count=progress.rollbacks + 1)
    logger.info("Data: %s", train_data.summary())
    code = 128 + (requests.signal or signal.SIGTERM) if status == "interrupted" else 0
    return TrainResult(status, progress.step, save.last, progress.best_ppl, code)


def _go_back(
    config: TrainConfig, save: Saver, data: Pipeline, world: World, *, seed: int, count: int
) -> tuple[TrainConfig, Detour]:
    """How to go on after a leap: from the newest checkpoint of this run, from the one before it the second time ..."""
    there = list(dict.fromkeys(path for path in save.written if path.exists()))
    path = ""
    if world.is_main:
        if count > 1 and len(there) > 1:
            discard(there.pop())
        path = str(newest_intact(there, set_aside=True) or "")
    path = world.gather({"path": path})[0]["path"]
    logger.warning("The run goes back to %s.", path or "its beginning")
    data.skip_bucket()
    detour = Detour(data.state_dict(), seed, count, there)
    data.close()
    return with_start(config, continued(path)) if path else config, detour


def plan(config: TrainConfig, options: Mapping[str, Section]) -> Plan:
    """What `train` would do and need: everything is validated, no weight is allocated.

    Raises:
        OnmtLlmError: As `train`.
    """
    config = settled(config)
    start = open_start(config, options)
    _, valid = split_corpora(config.corpora.data)
    check_validation(config.validation, valid)
    check_trackers(wandb=config.watching.wandb, mlflow=config.watching.mlflow)
    open_alignment(config.loss, start.model, split_corpora(config.corpora.data)[0])
    layers = resolve_layers(config, start)
    check_reference(config.corpora.objective, config.preference, adapters=layers.beside_base is not None)
    model, quantised = sketch(config, start, layers)
    check_package(config.optimizer.optim)
    check_in_backward(config, config.devices.world_size)
    device = config.devices.device
    device_type = resolve_device(device).type if device == "auto" else device
    check_device(config.performance, device_type)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    with heartbeat("Looking at the corpora"):
        open_pipelines(config, options, start, seed=0, world=world)
        sampled = sample_batches(config, options, start, world)
    # All but the weights is there by now; the copies of the model that are counted below are not to be in it.
    program = resident_memory() + sampled.rest if device_type == "cpu" else 0
    precision = choose_precision(
        config.performance.model_dtype,
        lora=layers.lora is not None,
        expanded=layers.expansion is not None,
        loss_scale=0.0,
        device=torch.device("meta"),
        pure_bf16=config.performance.pure_bf16,
    )
    parameters, trained = count(model)
    updates = config.run.accum_count[0] * max(config.devices.world_size, 1)
    return Plan(
        model=start.model,
        parameters=parameters,
        trainable=trained,
        lora_layers=len(lora_modules(model)),
        new_blocks=len(layers.new_blocks),
        quant_layers=len(quantised),
        memory=estimate_memory(
            model,
            Kept(start.model, config, layers, precision, sampled.batch),
            quantised=set(quantised),
            optim=config.optimizer.optim,
            average=config.optimizer.average_decay > 0,
            chunk_tokens=config.performance.loss_chunk_tokens,
            device_type=device_type,
        ),
        program=program,
        sampled=sampled,
        positions_per_step=sampled.batch.positions * updates,
        notes=_notes(config, start),
    )


def _other_models(config: TrainConfig) -> list[Path]:
    """Models that a run needs beside the one that it trains."""
    return [Path(name) for name in (config.preference.reference_model, config.loss.lm_prior_model) if name]


def _check_places(config: TrainConfig, start: Start, resumed: SavedState | None) -> None:
    """Make sure that the run's checkpoints can be written where they belong."""
    run, done = config.run, 0 if resumed is None else resumed.progress.step
    begun = [checkpoint.path for checkpoint in (start.weights, start.adapter) if checkpoint is not None]
    if run.keep_checkpoint:
        steps, inputs = range(done + 1, run.train_steps + 1), [*begun, *_other_models(config)]
        check_places(run.save_model, steps, every=run.save_checkpoint_steps, inputs=inputs)


def set_seed(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _announce(config: TrainConfig, start: Start, layers: Layers, job: Job, progress: Progress) -> None:
    """What is about to happen, for the log."""
    if not job.world.is_main:
        return
    run, model = job.run, job.model
    parameters, trained = count(model)
    logger.info(
        "Model: %s parameters, %s trainable, on %s in %s.",
        f"{parameters:,}",
        f"{trained:,}",
        job.world.device,
        job.performance.model_dtype,
    )
    if layers.lora is not None or layers.expansion is not None:
        quantised = sum(map(is_quantized, model.modules()))
        kind = f" ({layers.quant_type})" if quantised else ""
        logger.info("%s; %d layers quantised%s.", _addition(layers, model), quantised, kind)
    batching = config.batching
    unit = "tokens" if batching.batch_type == "tokens" else "examples"
    effective = batching.batch_size * run.accum_count[0] * job.world.size
    logger.info(
        "Batch: %d %s x %d micro-batches x %d processes = up to %d %s an update.",
        *(batching.batch_size, unit, run.accum_count[0], job.world.size, effective, unit),
    )
    if job.world.device.type == "cuda":
        masked = start.model.sliding_window is not None or (batching.packing != "off" and batching.isolate_documents)
        dtype = job.precision.autocast or job.precision.weights
        kernel = attention_kernel(start.model, dtype, dropout=config.regularization.attention_dropout[0], masked=masked)
        logger.info("Attention: torch's kernel for %s.", kernel)
    for note in _notes(config, start):
        logger.info(note)
    if start.adapter is not None and progress.step == 0:
        logger.info("Going on with the %s %s as a new run.", start.adapter.config.noun, start.adapter.path)
    if progress.step:
        logger.info("Resuming after step %d.", progress.step)
    elif older := checkpoints(run.save_model):
        logger.warning(
            "Checkpoints of an earlier run are there (%s ...); this run replaces those of the same step.",
            next(iter(older.values())),
        )


def _addition(layers: Layers, model: Transformer) -> str:
    """What is trained in or beside a frozen model."""
    if layers.lora is not None:
        return f"LoRA rank {layers.lora.rank}, alpha {layers.lora.alpha:g} on {len(lora_modules(model))} layers"
    assert layers.expansion is not None
    share = "" if layers.twins is None else f", lerp {layers.twins.lerp:g}"
    return (
        f"{len(layers.new_blocks)} new blocks ({layers.expansion.type}{share}) at {', '.join(layers.expansion.blocks)}"
    )


def _notes(config: TrainConfig, start: Start) -> list[str]:
    """Where the run begins, and what it writes where."""
    run, log = config.run, config.logging
    begin = "new weights" if start.weights is None else str(start.weights.path)
    if start.adapter is not None:
        begin += f" with the {start.adapter.config.noun} {start.adapter.path}"
    kept = "none" if run.keep_checkpoint == 0 else f"{run.save_model}_step_N every {run.save_checkpoint_steps} steps"
    if run.keep_checkpoint > 0:
        kept += f", the last {run.keep_checkpoint} kept"
    if config.optimizer.average_decay:
        kept += f"; the averaged weights in {run.save_model}_step_N_ema"
    lines = [f"Begins with: {begin}", f"Checkpoints: {kept}", f"Metrics: {metrics_path(config)}"]
    if log.tensorboard:
        lines.append(f"TensorBoard: {log.tensorboard_log_dir}")
    return lines
