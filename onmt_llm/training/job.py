"""`train` and `plan`: what `onmt_llm_train` calls. Here the parts are composed; each is a file beside this one."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.config.train import OptimConfig, TrainConfig
from onmt_llm.data.batching import Batch
from onmt_llm.data.corpus import split_corpora
from onmt_llm.data.counts import CorpusCounts
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.prompts import read_prompts
from onmt_llm.data.samples import write_samples
from onmt_llm.log import logger
from onmt_llm.nn.lora import lora_modules
from onmt_llm.nn.transformer import Transformer
from onmt_llm.nn.wrap import match
from onmt_llm.optional import require
from onmt_llm.training.average import Average
from onmt_llm.training.build import Layers, build, resolve_layers, sketch
from onmt_llm.training.dist import World, open_world, resolve_device
from onmt_llm.training.lm_prior import open_prior
from onmt_llm.training.loop import Job, train_loop
from onmt_llm.training.metrics import Reporter
from onmt_llm.training.objective import Objective, open_alignment
from onmt_llm.training.optim import build_optimizer
from onmt_llm.training.plan import Plan, Shape, count, estimate_memory
from onmt_llm.training.precision import choose_precision
from onmt_llm.training.saver import Saver, restore, with_base
from onmt_llm.training.schedule import build_schedule
from onmt_llm.training.start import Start, open_start
from onmt_llm.training.state import Progress, SavedState, checkpoints, load_optimizer
from onmt_llm.training.stopping import EarlyStopping
from onmt_llm.training.translations import Translations, check_validation, dump_folder
from onmt_llm.training.validation import Judge


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: "finished", "stopped early", "interrupted", "already done" or "sampled".
        step: Updates done in all.
        checkpoint: The newest checkpoint; None when none was written.
        best_ppl: Best validation perplexity; inf without validation.
    """

    status: str
    step: int = 0
    checkpoint: Path | None = None
    best_ppl: float = float("inf")


def train(config: TrainConfig, options: Mapping[str, Section]) -> TrainResult:
    """Train as `config` says.

    Args:
        config: All options.
        options: Sections of the transforms, by name.

    Raises:
        OnmtLlmError: Anything that the user can put right; see the subclasses in `errors`.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    start = open_start(config, options)
    if config.corpora.n_sample:
        _sample(config, options, start)
        return TrainResult("sampled")
    layers = resolve_layers(config, start)
    resumed = _state_to_resume(config, start, layers)
    if resumed is not None and resumed.progress.step >= config.run.train_steps:
        done, path = resumed.progress.step, config.run.train_from
        logger.info("Nothing to do: %s is of step %d, and train_steps is %d.", path, done, config.run.train_steps)
        return TrainResult("already done", step=done, checkpoint=Path(str(path)), best_ppl=resumed.progress.best_ppl)
    world = open_world(config.devices.device, config.devices.world_size)
    try:
        return _train(config, options, start, layers, resumed, world)
    finally:
        world.close()


def _train(
    config: TrainConfig,
    options: Mapping[str, Section],
    start: Start,
    layers: Layers,
    resumed: SavedState | None,
    world: World,
) -> TrainResult:
    run = config.run
    seed = _seed(run.seed, resumed, world)
    set_seed(seed)
    optim = resumed_settings(config.optimizer, resumed, reset=run.reset_optim)
    translations = _open_translations(config, options, start)
    objective = _open_objective(config, optim, start, world.device)
    precision = choose_precision(
        run.model_dtype, lora=layers.lora is not None, loss_scale=optim.loss_scale, device=world.device
    )
    spec = None
    if layers.lora is not None:
        assert start.weights is not None
        spec = with_base(layers.lora, start.weights, world)
    model = build(config, start, layers, precision, world)
    # From here on ranks must differ: each has dropout of its own.
    set_seed(seed + world.rank)

    job = Job(
        model=model,
        optimizer=build_optimizer(model, optim),
        schedule=build_schedule(optim, train_steps=run.train_steps, hidden_size=start.model.hidden_size),
        precision=precision,
        world=world,
        run=run,
        optim=optim,
        objective=objective,
        stopping=EarlyStopping(config.validation.early_stopping, config.validation.early_stopping_criteria),
        average=Average(model, decay=optim.average_decay, every=optim.average_every) if optim.average_decay else None,
    )
    train_data, valid_data = open_pipelines(config, options, start, seed=seed, world=world)
    progress = Progress()
    if resumed is not None:
        progress = _resume(resumed, job, train_data)
    _announce(config, start, layers, job, progress)
    save = Saver(job, start, spec, train_data, seed)
    judge = None
    if valid_data is not None:
        judge = Judge(model, valid_data, precision, world, job.average, translations)
    with build_reporter(config, world, progress.step, data=partial(data_figures, train_data, world)) as report:
        status = train_loop(job, train_data, progress, report=report, save=save, validate=judge)
    logger.info("Data: %s", train_data.summary())
    return TrainResult(status, step=progress.step, checkpoint=save.last, best_ppl=progress.best_ppl)


def plan(config: TrainConfig, options: Mapping[str, Section]) -> Plan:
    """What `train` would do and need: everything is validated, no weight is allocated.

    Raises:
        OnmtLlmError: As `train`.
    """
    start = open_start(config, options)
    _, valid = split_corpora(config.corpora.data)
    check_validation(config.validation, valid)
    open_alignment(config.objective, start.model, split_corpora(config.corpora.data)[0])
    layers = resolve_layers(config, start)
    model, quantised = sketch(config, start, layers)
    if config.optimizer.optim.endswith("bit"):
        require("bitsandbytes", f"optim: {config.optimizer.optim}")
    world = World(rank=0, size=1, device=torch.device("cpu"))
    train_data, _ = open_pipelines(config, options, start, seed=0, world=world)
    batch = max((_shape(batch) for batch in islice(train_data, 16)), key=lambda shape: shape.positions)
    precision = choose_precision(
        config.run.model_dtype, lora=layers.lora is not None, loss_scale=0.0, device=torch.device("meta")
    )
    parameters, trained = count(model)
    updates = config.run.accum_count[0] * max(config.devices.world_size, 1)
    return Plan(
        model=start.model,
        parameters=parameters,
        trainable=trained,
        lora_layers=len(lora_modules(model)),
        quant_layers=len(quantised),
        memory=estimate_memory(
            model,
            quantised=set(quantised),
            quant_type=layers.quant_type,
            weight_bytes=precision.weights.itemsize,
            optim=config.optimizer.optim,
            batch=batch,
            autocast=precision.autocast is not None,
            dropout=max(config.run.dropout) > 0,
            average=config.optimizer.average_decay > 0,
            checkpoint_blocks=bool(config.run.use_ckpting),
            device_type=device if (device := config.devices.device) != "auto" else resolve_device(device).type,
        ),
        batch=batch,
        positions_per_step=batch.positions * updates,
        notes=_notes(config, start),
    )


def set_seed(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
    for name, value in written.items():
        if name in resumed.settings and resumed.settings[name] != value:
            logger.info("%s is %s now; it was %s.", name, value, resumed.settings[name])
    known = {name: value for name, value in resumed.settings.items() if name in OptimConfig.model_fields}
    return OptimConfig.model_validate({**known, **written})


def open_pipelines(
    config: TrainConfig, options: Mapping[str, Section], start: Start, *, seed: int, world: World
) -> tuple[Pipeline, Pipeline | None]:
    """Batches for training, and for validation where there is a corpus for it."""
    train_corpora, valid_corpora = split_corpora(config.corpora.data)

    def open_(corpora: Mapping[str, CorpusConfig], training: bool) -> Pipeline:
        return Pipeline(
            corpora,
            data=config.corpora,
            batching=config.batching,
            options=options,
            vocab=start.vocab,
            src_vocab=start.src_vocab,
            tokenizer=start.tokenizer,
            src_tokenizer=start.src_tokenizer,
            template=start.template,
            task=start.task,
            add_bos=start.config.specials.add_bos,
            feature_vocabs=start.feature_vocabs,
            seed=seed if config.batching.data_seed is None else config.batching.data_seed,
            training=training,
            rank=world.rank,
            world_size=world.size,
            pin_memory=world.device.type == "cuda",
        )

    return open_(train_corpora, True), open_(valid_corpora, False) if valid_corpora else None


def data_figures(pipeline: Pipeline, world: World) -> dict[str, float]:
    """What has happened to each corpus on all ranks: `data/<corpus>/read`, `data/<corpus>/dropped/<reason>` ..."""
    own = {name: counts.to_dict() for name, counts in pipeline.counts.items()}
    total = {name: CorpusCounts() for name in own}
    for rank in world.gather(own):
        for name, counts in rank.items():
            total[name].add(CorpusCounts.from_dict(counts))
    return {f"data/{name}/{key}": value for name, counts in total.items() for key, value in counts.figures().items()}


def build_reporter(
    config: TrainConfig, world: World, start_step: int, *, data: Callable[[], dict[str, float]]
) -> Reporter:
    """The reporter of this rank; only rank 0's writes anything."""
    log = config.logging
    shared: dict[str, Any] = {
        "data": data,
        "start_step": start_step,
        "train_steps": config.run.train_steps,
        "report_every": log.report_every,
    }
    if not world.is_main:
        return Reporter(**shared, progress="none")
    folder = Path(log.tensorboard_log_dir) / time.strftime("%b-%d_%H-%M-%S") if log.tensorboard else None
    return Reporter(
        **shared,
        progress=log.progress,
        metrics_file=metrics_path(config),
        tensorboard_dir=folder,
    )


def metrics_path(config: TrainConfig) -> Path:
    """Where the figures of every report go."""
    return Path(config.logging.metrics_file or f"{config.run.save_model}_metrics.jsonl")


def _state_to_resume(config: TrainConfig, start: Start, layers: Layers) -> SavedState | None:
    """The training state to go on from; None where the run begins at step 0."""
    if start.saved is None or config.run.reset_optim == "all":
        return None
    if start.before is not None and config.run.reset_optim != "states":
        logger.info(
            "update_vocab: %s was trained with another vocabulary: a new run begins, at step 0 with a new optimiser "
            "(reset_optim: states keeps the step).",
            config.run.train_from,
        )
        return None
    if layers.lora is not None and start.adapter is None:
        logger.info("%s was trained as a whole: with LoRA a new run begins, at step 0.", config.run.train_from)
        return None
    return start.saved


def _seed(wanted: int, resumed: SavedState | None, world: World) -> int:
    """The run's seed, equal on all ranks; a run that goes on keeps its own unless the user wants another."""
    if wanted >= 0:
        return wanted
    if resumed is not None:
        return resumed.seed
    drawn = world.gather({"seed": secrets.randbelow(2**31)})[0]["seed"]
    logger.info("Seed of this run: %d.", drawn)
    return int(drawn)


def _resume(resumed: SavedState, job: Job, train_data: Pipeline) -> Progress:
    """Put optimiser, random generators and data back to where they were; returns how far that is."""
    if job.run.reset_optim == "states":
        logger.info("reset_optim: the optimiser begins anew at step %d.", resumed.progress.step)
    elif resumed.optimizer != job.optim.optim:
        logger.warning("The state of %s cannot serve %s, which begins anew.", resumed.optimizer, job.optim.optim)
    else:
        load_optimizer(resumed, job.model, job.optimizer)
    if job.average is not None:
        job.average.load(resumed.directory.parent)
    restore(resumed, train_data, job.world)
    return resumed.progress


def _open_objective(config: TrainConfig, optim: OptimConfig, start: Start, device: torch.device) -> Objective:
    train_corpora, _ = split_corpora(config.corpora.data)
    return Objective(
        label_smoothing=optim.label_smoothing,
        prior=open_prior(config.objective, start.vocab, device),
        alignment=open_alignment(config.objective, start.model, train_corpora),
    )


def _open_translations(config: TrainConfig, options: Mapping[str, Section], start: Start) -> Translations | None:
    """The validation corpora as questions; None where no metric is asked for."""
    _, corpora = split_corpora(config.corpora.data)
    scorers = check_validation(config.validation, corpora)
    if not scorers:
        return None
    prompts, skipped = read_prompts(corpora, data=config.corpora, options=options, model=start.text)
    return Translations(
        prompts,
        skipped=skipped,
        scorers=scorers,
        codec=start.codec,
        settings=config.validation,
        batching=config.batching,
        folder=dump_folder(config.validation, config.run.save_model),
    )


def _sample(config: TrainConfig, options: Mapping[str, Section], start: Start) -> None:
    """Write samples of the transformed corpora instead of training."""
    data = config.corpora
    folder = data.save_data or f"{config.run.save_model}_data"
    write_samples(
        data.data,
        data=data,
        options=options,
        model=start.text,
        directory=folder,
        n_sample=data.n_sample,
        overwrite=data.overwrite,
    )


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
        run.model_dtype,
    )
    if layers.lora is not None:
        quantised = len(match_quantised(model, layers))
        kind = f" ({layers.quant_type})" if quantised else ""
        logger.info(
            "LoRA rank %d, alpha %g on %d layers; %d layers quantised%s.",
            *(layers.lora.rank, layers.lora.alpha, len(lora_modules(model)), quantised, kind),
        )
    batching = config.batching
    unit = "tokens" if batching.batch_type == "tokens" else "examples"
    effective = batching.batch_size * run.accum_count[0] * job.world.size
    logger.info(
        "Batch: %d %s x %d micro-batches x %d processes = up to %d %s an update.",
        *(batching.batch_size, unit, run.accum_count[0], job.world.size, effective, unit),
    )
    for note in _notes(config, start):
        logger.info(note)
    if start.adapter is not None and progress.step == 0:
        logger.info("Going on with the adapter %s as a new run.", start.adapter.path)
    if progress.step:
        logger.info("Resuming after step %d.", progress.step)
    elif older := checkpoints(run.save_model):
        logger.warning(
            "Checkpoints of an earlier run are there (%s ...); this run replaces those of the same step.",
            next(iter(older.values())),
        )


def match_quantised(model: Transformer, layers: Layers) -> list[str]:
    """Paths of the quantised layers."""
    return match(model, layers.quantised)


def _notes(config: TrainConfig, start: Start) -> list[str]:
    """Where the run begins, and what it writes where."""
    run, log = config.run, config.logging
    begin = "new weights" if start.weights is None else str(start.weights.path)
    if start.adapter is not None:
        begin += f" with the adapter {start.adapter.path}"
    kept = "none" if run.keep_checkpoint == 0 else f"{run.save_model}_step_N every {run.save_checkpoint_steps} steps"
    if run.keep_checkpoint > 0:
        kept += f", the last {run.keep_checkpoint} kept"
    if config.optimizer.average_decay:
        kept += f"; the averaged weights in {run.save_model}_step_N_ema"
    lines = [f"Begins with: {begin}", f"Checkpoints: {kept}", f"Metrics: {metrics_path(config)}"]
    if log.tensorboard:
        lines.append(f"TensorBoard: {log.tensorboard_log_dir}")
    return lines


def _shape(batch: Batch) -> Shape:
    source = 0 if batch.src_BS is None else batch.src_BS.numel()
    return Shape(examples=batch.num_examples, tgt_positions=batch.tgt_BT.numel(), src_positions=source)
