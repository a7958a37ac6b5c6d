"""Build the reporter of a run: its sinks and the metrics that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from onmt_llm.config.data import DataConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.spec import split_corpora
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.metrics.mfu import HardwareMonitor, ModelFlops, matmul_peak
from onmt_llm.training.metrics.reporter import MetricSources, Reporter
from onmt_llm.training.metrics.sinks import OpenSink, open_jsonl, open_mlflow, open_tensorboard, open_wandb
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.process.dist import World
from onmt_llm.training.state import Progress


def data_metrics(pipeline: Pipeline, world: World) -> dict[str, float]:
    """Counts of each corpus over all ranks: `data/<corpus>/read`, `data/<corpus>/dropped/<reason>` ..."""
    own = {name: counts.to_dict() for name, counts in pipeline.counts.items()}
    total = {name: CorpusCounts() for name in own}
    for rank in world.gather_data(own):
        for name, counts in rank.items():
            total[name].add(CorpusCounts.from_dict(counts))
    return {f"data/{name}/{key}": value for name, counts in total.items() for key, value in counts.figures().items()}


def per_corpus_names(corpora: DataConfig) -> list[str]:
    """The training corpora whose likelihoods are reported separately: all of them, if there are several."""
    names = list(split_corpora(corpora.data)[0])
    return names if len(names) > 1 else []


def build_reporter(
    config: TrainConfig,
    world: World,
    progress: Progress,
    *,
    data: Callable[[], dict[str, float]],
    hardware: Callable[[float], dict[str, float]],
) -> Reporter:
    """The reporter of this rank; only that of rank 0 writes anything.

    Args:
        config: All options.
        world: This process among the others.
        progress: Where the run starts.
        data: See `MetricSources`.
        hardware: See `MetricSources`.
    """
    log = config.logging
    shared: dict[str, Any] = {
        "start_step": progress.step,
        "resumed": progress.report,
        "sources": MetricSources(data, hardware, per_corpus_names(config.corpora)),
        "train_steps": config.run.train_steps,
        "report_every": log.report_every,
    }
    if not world.is_main:
        return Reporter(**shared, progress="none")
    return Reporter(**shared, progress=log.progress, sinks=_sinks(config, progress.step))


def _sinks(config: TrainConfig, step: int) -> dict[str, OpenSink]:
    """The sinks of a run that starts after `step`."""
    log, watching = config.logging, config.watching
    sinks: dict[str, OpenSink] = {"metrics_file": partial(open_jsonl, metrics_path(config), step)}
    if log.tensorboard:
        sinks["tensorboard"] = partial(open_tensorboard, Path(log.tensorboard_log_dir), step)
    trackers = {"wandb": (watching.wandb, open_wandb), "mlflow": (watching.mlflow, open_mlflow)}
    options = config.model_dump(mode="json", exclude_defaults=True)
    for name, (wanted, opener) in trackers.items():
        if wanted:
            sinks[name] = partial(opener, watching.tracking_project, Path(config.run.save_model).name, options)
    return sinks


def open_hardware_monitor(
    config: TrainConfig, model: Transformer, precision: Precision, device: torch.device
) -> HardwareMonitor:
    """The monitor of the hardware; with `measure_flops`, the peak speed is measured here."""
    if not config.watching.measure_flops:
        return HardwareMonitor(device)
    dtype = precision.autocast or precision.weights
    peak = matmul_peak(device, dtype)
    logger.info("Peak of matrix products: %.4g GFLOP/s in %s.", peak / 1e9, str(dtype).removeprefix("torch."))
    return HardwareMonitor(device, ModelFlops.of(model), peak)


def metrics_path(config: TrainConfig) -> Path:
    """The file for the metrics of every report."""
    return Path(config.logging.metrics_file or f"{config.run.save_model}_metrics.jsonl")
