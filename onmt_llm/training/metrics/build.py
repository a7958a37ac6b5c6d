"""What a run reports, and to whom, as its options say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from onmt_llm.config.data import DataConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.corpus import split_corpora
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dist import World
from onmt_llm.training.metrics.mfu import Machine, ModelFlops, matmul_peak
from onmt_llm.training.metrics.reporter import Reporter
from onmt_llm.training.metrics.sinks import OpenSink, open_mlflow, open_rows, open_tensorboard, open_wandb
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.state import Progress


def data_figures(pipeline: Pipeline, world: World) -> dict[str, float]:
    """What has happened to each corpus on all ranks: `data/<corpus>/read`, `data/<corpus>/dropped/<reason>` ..."""
    own = {name: counts.to_dict() for name, counts in pipeline.counts.items()}
    total = {name: CorpusCounts() for name in own}
    for rank in world.gather(own):
        for name, counts in rank.items():
            total[name].add(CorpusCounts.from_dict(counts))
    return {f"data/{name}/{key}": value for name, counts in total.items() for key, value in counts.figures().items()}


def told_apart(corpora: DataConfig) -> list[str]:
    """The corpora for training whose likelihoods are reported each by itself: all, where there are several."""
    names = list(split_corpora(corpora.data)[0])
    return names if len(names) > 1 else []


def build_reporter(
    config: TrainConfig,
    world: World,
    progress: Progress,
    *,
    data: Callable[[], dict[str, float]],
    machine: Callable[[float], dict[str, float]],
) -> Reporter:
    """The reporter of this rank; only rank 0's writes anything."""
    log = config.logging
    shared: dict[str, Any] = {
        "start_step": progress.step,
        "resumed": progress.report,
        "data": data,
        "corpora": told_apart(config.corpora),
        "machine": machine,
        "train_steps": config.run.train_steps,
        "report_every": log.report_every,
    }
    if not world.is_main:
        return Reporter(**shared, progress="none")
    return Reporter(**shared, progress=log.progress, sinks=_sinks(config, progress.step))


def _sinks(config: TrainConfig, step: int) -> dict[str, OpenSink]:
    """Where the figures of a run go that begins after `step`."""
    log, watching = config.logging, config.watching
    sinks: dict[str, OpenSink] = {"metrics_file": partial(open_rows, metrics_path(config), step)}
    if log.tensorboard:
        sinks["tensorboard"] = partial(open_tensorboard, Path(log.tensorboard_log_dir), step)
    trackers = {"wandb": (watching.wandb, open_wandb), "mlflow": (watching.mlflow, open_mlflow)}
    options = config.model_dump(mode="json", exclude_defaults=True)
    for name, (wanted, opener) in trackers.items():
        if wanted:
            sinks[name] = partial(opener, watching.tracking_project, Path(config.run.save_model).name, options)
    return sinks


def open_machine(config: TrainConfig, model: Transformer, precision: Precision, device: torch.device) -> Machine:
    """What is reported of the machine; its peak is measured here, if that is asked for."""
    if not config.watching.measure_flops:
        return Machine(device)
    dtype = precision.autocast or precision.weights
    peak = matmul_peak(device, dtype)
    logger.info("Matrix products reach %.4g GFLOP/s in %s.", peak / 1e9, str(dtype).removeprefix("torch."))
    return Machine(device, ModelFlops.of(model), peak)


def metrics_path(config: TrainConfig) -> Path:
    """Where the figures of every report go."""
    return Path(config.logging.metrics_file or f"{config.run.save_model}_metrics.jsonl")
