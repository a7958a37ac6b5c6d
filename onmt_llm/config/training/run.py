"""Length, checkpoints, log and devices of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from onmt_llm.config.numbers import Count, CountOrAll, CountOrZero, Seed, WorkersOrZero
from onmt_llm.config.section import Section
from onmt_llm.output_checks import name_problem


class RunConfig(Section):
    """Length, gradient accumulation, checkpoints and seed of a run."""

    save_model: str = "model"
    """Prefix of the checkpoints: `<save_model>_step_<N>`."""
    train_steps: Count = 100000
    """Total optimiser steps, including those before a resume."""
    accum_count: list[Annotated[int, Field(ge=1, le=10**5)]] = Field(default_factory=lambda: [1])
    """Gradient accumulation: micro-batches per step; several values follow each other at `accum_steps`."""
    accum_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Steps at which the next value of `accum_count` takes effect."""
    normalization: Literal["tokens", "sents"] = "tokens"
    """Divide the summed loss of a step by its target tokens (`tokens`) or by its examples (`sents`)."""
    save_checkpoint_steps: Count = 5000
    """Steps between two checkpoints."""
    keep_checkpoint: CountOrAll = -1
    """Number of checkpoints to keep on disk; -1 = all, 0 = save none."""
    valid_steps: Count = 10000
    """Steps between two validations."""
    freeze_encoder: bool = False
    """Freeze the layers of the encoder, but not its embeddings."""
    freeze_decoder: bool = False
    """Freeze the layers of the decoder, but not its embeddings or the output layer."""
    seed: Seed = -1
    """Seed of initialisation, dropout and data order; -1 = a random one, which is logged."""
    threads: WorkersOrZero = 0
    """CPU threads; 0 = torch's default."""

    @field_validator("save_model")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        name = prefix.rpartition("/")[2]
        if problem := name_problem(name):
            reason = problem if name.strip(".") else f"is '{prefix}'"
            raise ValueError(f"must end in a name that checkpoints can begin with, as in run/model, but {reason}")
        return prefix


class DeviceConfig(Section):
    """Device and number of processes."""

    world_size: CountOrZero = 1
    """Total number of processes; start more than one with torchrun. 0 = CPU."""
    gpu_ranks: list[CountOrZero] = Field(default_factory=list)
    """OpenNMT-py's list of GPU ranks; accepted, but a GPU is used whenever there is one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; `auto` = CUDA if available."""


class LoggingConfig(Section):
    """Progress, metrics and log files."""

    report_every: Count = 50
    """Steps between two progress reports."""
    tensorboard: bool = False
    """Write TensorBoard events."""
    tensorboard_log_dir: str = "runs/onmt_llm"
    """Folder of the TensorBoard events; each run gets a subfolder named after its start time."""
    metrics_file: str | None = None
    """JSON lines file for the metrics of every report; null = `<save_model>_metrics.jsonl`."""
    log_file: str | None = None
    """File that receives a copy of the log."""
    progress: Literal["auto", "bar", "line", "none"] = "auto"
    """Show progress as a bar or as log lines; `auto` = a bar if stderr is a terminal, else lines."""
    verbose: bool = False
    """Log more detail."""
