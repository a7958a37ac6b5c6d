"""Length, checkpoints, device and log of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from onmt_llm.config.numbers import Count, CountOrAll, CountOrZero, Seed, WorkersOrZero
from onmt_llm.config.section import Section
from onmt_llm.output_checks import name_problem


class RunConfig(Section):
    """Length of a run, its checkpoints and its random seed."""

    save_model: str = "model"
    """Prefix of checkpoints: `<save_model>_step_<N>`."""
    train_steps: Count = 100000
    """Optimiser updates in all, those before a resume included."""
    accum_count: list[Annotated[int, Field(ge=1, le=10**5)]] = Field(default_factory=lambda: [1])
    """Micro-batches of one update; a list changes with `accum_steps`."""
    accum_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Updates at which the next value of `accum_count` begins."""
    normalization: Literal["tokens", "sents"] = "tokens"
    """Divide the summed loss of an update by its trained tokens, or by its examples."""
    save_checkpoint_steps: Count = 5000
    """Updates between two checkpoints."""
    keep_checkpoint: CountOrAll = -1
    """Checkpoints kept on disk; -1 = all."""
    valid_steps: Count = 10000
    """Updates between two validations."""
    freeze_encoder: bool = False
    """The encoder's layers are not trained; its embeddings are."""
    freeze_decoder: bool = False
    """The decoder's layers are not trained; its embeddings and the output layer are."""
    seed: Seed = -1
    """Seed of initialisation, dropout and data; -1 = a new one, which is logged."""
    threads: WorkersOrZero = 0
    """CPU threads; 0 = torch's choice."""

    @field_validator("save_model")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        name = prefix.rpartition("/")[2]
        if problem := name_problem(name):
            said = problem if name.strip(".") else f"is '{prefix}'"
            raise ValueError(f"must end in a name that checkpoints can begin with, as in run/model, but {said}")
        return prefix


class DeviceConfig(Section):
    """Processors. Several are used under torchrun; these options of OpenNMT-py choose the kind."""

    world_size: CountOrZero = 1
    """Processes in all; more than one is started with torchrun. 0 = CPU."""
    gpu_ranks: list[CountOrZero] = Field(default_factory=list)
    """OpenNMT-py's list of GPU ranks; a GPU is used where there is one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` = CUDA where it is available."""


class LogConfig(Section):
    """What a run says, and where."""

    report_every: Count = 50
    """Updates between two lines of progress."""
    tensorboard: bool = False
    """Write TensorBoard events."""
    tensorboard_log_dir: str = "runs/onmt_llm"
    """Folder of the events; each run gets one below it, named by its start."""
    metrics_file: str | None = None
    """JSON lines with the figures of every report; null = `<save_model>_metrics.jsonl`."""
    log_file: str | None = None
    """Copy of the log."""
    progress: Literal["auto", "bar", "line", "none"] = "auto"
    """A bar where stderr is a terminal, else lines."""
    verbose: bool = False
    """Say more."""
