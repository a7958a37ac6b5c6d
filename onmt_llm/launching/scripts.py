"""Scripts for bash: a job of SLURM, `torchrun` on machines without a scheduler, and a job of Ray."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onmt_llm.config.launch import ClusterConfig

_MODULE = "onmt_llm.cli.train"


@dataclass(frozen=True)
class TrainingJob:
    """What a script starts, and where.

    Attributes:
        cluster: The machines.
        words: The arguments of `onmt_llm_train`, without `world_size` and the device.
        folder: Folder in which they hold; on every machine.
        name: Name of the job.
        script: The file that is written, if one is.
    """

    cluster: ClusterConfig
    words: Sequence[str]
    folder: Path
    name: str
    script: Path | None = None

    @property
    def training_words(self) -> list[str]:
        """All arguments of `onmt_llm_train`."""
        device = [] if self.cluster.on_gpus else ["-device", "cpu"]
        return [*self.words, "-world_size", str(self.cluster.world_size), *device]

    @property
    def size(self) -> str:
        """The processes, in words."""
        cluster = self.cluster
        each = f"GPUs on each: {cluster.gpus_per_node}; " if cluster.on_gpus else ""
        return f"Machines: {cluster.nodes}; {each}processes: {cluster.world_size}"

    @property
    def script_name(self) -> str:
        return shlex.quote(str(self.script)) if self.script else "FILE"


def slurm(job: TrainingJob) -> str:
    """A job of SLURM that saves and queues itself again before its time is over.

    SLURM signals the script alone (`B:`). A SIGTERM to srun would kill the processes, so the script sends it to them by
    scancel, which spares the script.
    """
    cluster = job.cluster
    return _script(
        f"# {job.size}. Submit it with: sbatch {job.script_name}",
        *(f"#SBATCH --{option}" for option in _sbatch(job)),
        "set -euo pipefail",
        *_prepare(job),
        f"export OMP_NUM_THREADS={cluster.cpus_per_process}",
        "# how long torchrun waits for a checkpoint before it kills the processes",
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={cluster.save_seconds}",
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
        "",
        "requeue=",
        "save_and_requeue() {",
        "    requeue=yes",
        '    scancel --signal=TERM "$SLURM_JOB_ID" # its steps save and stop; a signal to srun would kill them',
        "}",
        "trap save_and_requeue USR1",
        "",
        _command(["srun", "--kill-on-bad-exit=1", *_torchrun(job, "$SLURM_JOB_ID", "$head")]) + " &",
        "step=$!",
        "while true; do",
        "    code=0",
        '    wait "$step" || code=$?',
        '    kill -0 "$step" 2> /dev/null || break # else the signal ended `wait`, and not the step',
        "done",
        'if [ -n "$requeue" ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" # the run resumes its newest checkpoint',
        "    exit 0",
        "fi",
        'exit "$code"',
    )


def torchrun(job: TrainingJob) -> str:
    """A script that is started on each of several machines, or on one."""
    cluster = job.cluster
    alone = cluster.nodes == 1
    start = f"Start it with: bash {job.script_name}"
    if not alone:
        start = f"Start it on each machine with: bash {job.script_name} HOST, where HOST is the same one of them"
    return _script(
        f"# {job.size}. {start}",
        "set -euo pipefail",
        *([] if alone else ['head=${1:?"the first argument must be the machine at which all meet"}']),
        *_prepare(job),
        f"export OMP_NUM_THREADS={cluster.cpus_per_process}",
        "exec " + _command(_torchrun(job, job.name, "$head")),
    )


def ray(job: TrainingJob, words: Sequence[str]) -> str:
    """A job of Ray: the command that trains on a cluster.

    Args:
        job: What it starts.
        words: The arguments of `onmt_llm_launch ray` that train.
    """
    return _script(
        f"# {job.size}. Run it on a machine of the cluster, or submit it: ray job submit -- bash {job.script_name}",
        "set -euo pipefail",
        *_prepare(job),
        "export RAY_USAGE_STATS_ENABLED=0",
        'export RAY_ADDRESS="${RAY_ADDRESS:-auto}"',
        "exec " + _command(["python", "-m", "onmt_llm.cli.launch", "ray", *map(shlex.quote, words)]),
    )


def _sbatch(job: TrainingJob) -> Iterator[str]:
    cluster = job.cluster
    log = (job.script.parent if job.script else job.folder).resolve() / "%x-%j.log"
    yield from (f"job-name={job.name}", f"nodes={cluster.nodes}", "ntasks-per-node=1")
    if cluster.on_gpus:
        yield f"gpus-per-node={cluster.gpus_per_node}"
    yield f"cpus-per-task={cluster.cpus_per_process * cluster.processes}"
    days, rest = divmod(cluster.time_limit, 86400)
    yield f"time={days}-{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    wanted = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mem": cluster.memory,
    }
    yield from (f"{option}={value}" for option, value in wanted.items() if value)
    yield from (f"signal=B:USR1@{cluster.save_seconds}", "requeue", "open-mode=append", f"output={log}")


def _torchrun(job: TrainingJob, run_id: str, head: str) -> list[str]:
    cluster = job.cluster
    meet = (
        ["--standalone"]
        if cluster.nodes == 1
        else ["--rdzv_backend=c10d", f'--rdzv_id="{run_id}"', f'--rdzv_endpoint="{head}:{cluster.head_port}"']
    )
    numbers = [f"--nnodes={cluster.nodes}", f"--nproc_per_node={cluster.processes}"]
    run = ["torchrun", *numbers, f"--max_restarts={cluster.max_restarts}", *meet, "-m", _MODULE]
    return [*run, *map(shlex.quote, job.training_words)]


def _prepare(job: TrainingJob) -> list[str]:
    """Go to the folder, and set up the environment."""
    modules = [f"module load {' '.join(map(shlex.quote, job.cluster.modules))}"] if job.cluster.modules else []
    return [f"cd {shlex.quote(str(job.folder))}", *modules, *job.cluster.commands]


def _command(words: Sequence[str]) -> str:
    """A command on lines of readable length; its words are quoted already."""
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) > 100:
            lines.append(line)
            line = "   "
        line = f"{line} {word}" if line else word
    return " \\\n".join([*lines, line])


def _script(*lines: str) -> str:
    return "\n".join(["#!/bin/bash", "# Written by onmt_llm_launch.", *lines])


def job_name(save_model: str) -> str:
    """A job name from the prefix of the checkpoints: its last part, in characters that schedulers accept."""
    return re.sub(r"[^\w.-]", "_", Path(save_model).name) or "train"
