"""Options of `onmt_llm_launch`: those of a training run, and those of the cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from onmt_llm.config.numbers import Count, CountOrZero, Workers
from onmt_llm.config.section import Section
from onmt_llm.config.train import TrainConfig, seconds


class ClusterConfig(Section):
    """The machines, and what their scheduler is asked for."""

    nodes: Count = 1
    """Number of machines."""
    gpus_per_node: CountOrZero = 1
    """GPUs of each machine, one process each; 0 = train on CPUs."""
    processes_per_node: Count | None = None
    """`gpus_per_node: 0`: processes of each machine; null = 1."""
    cpus_per_process: Workers = 4
    """CPUs of each process, and its threads."""
    time: str = "24:00:00"
    """`slurm`: time limit of a job, after which it is queued again: `11h30m`, `23:30:00`, or seconds."""
    save_seconds: Annotated[int, Field(ge=10, le=3600)] = 120
    """`slurm`: seconds before the time limit at which the run saves a checkpoint and stops."""
    partition: str | None = None
    """`slurm`: partition; null = the cluster's default."""
    account: str | None = None
    """`slurm`: account that is charged."""
    qos: str | None = None
    """`slurm`: quality of service."""
    constraint: str | None = None
    """`slurm`: features that the machines must have."""
    memory: str | None = None
    """`slurm`: memory of each machine (`480G`); null = the cluster's default."""
    job_name: str | None = None
    """Name of the job; null = that of `save_model`."""
    modules: list[str] = Field(default_factory=list)
    """Environment modules to load first (`module load`)."""
    commands: list[str] = Field(default_factory=list)
    """Shell commands to run first: `source .venv/bin/activate`."""
    head_port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """`slurm`, `torchrun`: port of the first machine at which the others meet."""
    max_restarts: CountOrZero = 0
    """How often the processes are started again, from the last checkpoint, if one of them fails."""
    ray_address: str | None = None
    """`ray`: address of the cluster; null = the environment variable `RAY_ADDRESS`, else a new one on this machine."""
    output: str | None = None
    """Script to write; null = print it, and with `ray` train at once."""
    overwrite_script: bool = False
    """Replace an existing `output`."""

    @property
    def on_gpus(self) -> bool:
        return self.gpus_per_node > 0

    @property
    def processes(self) -> int:
        """Processes of each machine."""
        return self.gpus_per_node or self.processes_per_node or 1

    @property
    def world_size(self) -> int:
        """Processes of all machines."""
        return self.nodes * self.processes

    @property
    def time_limit(self) -> int:
        """Seconds."""
        return round(seconds(self.time))

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: object) -> object:
        seconds(str(value))
        return str(value)

    @field_validator("partition", "account", "qos", "constraint", "memory", "job_name", "modules")
    @classmethod
    def _one_word(cls, value: str | list[str] | None) -> str | list[str] | None:
        for word in [value] if isinstance(value, str) else value or ():
            if not word or not word.isprintable() or any(each.isspace() for each in word):
                raise ValueError(f"must be without spaces, but is '{word}'")
        return value

    @field_validator("commands")
    @classmethod
    def _one_line(cls, value: list[str]) -> list[str]:
        for line in value:
            if not line.isprintable():
                raise ValueError(f"must be lines of printable characters, but one is {line!r}")
        return value

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if self.on_gpus and self.processes_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"processes_per_node must be gpus_per_node, {self.gpus_per_node}, one process for each GPU, "
                f"but is {self.processes_per_node}"
            )
        if self.time_limit < 2 * self.save_seconds:
            raise ValueError(
                f"time must be at least twice save_seconds, {2 * self.save_seconds} s, but is {self.time_limit} s"
            )
        return self


class LaunchConfig(TrainConfig):
    """Write the scripts that start a training run on a cluster; takes the YAML file of `onmt_llm_train`."""

    cluster: ClusterConfig = ClusterConfig()
