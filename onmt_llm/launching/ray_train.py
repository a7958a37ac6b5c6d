"""Ray Train around a training run: Ray starts the processes and joins them, and each calls the same function."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onmt_llm.config.launch import ClusterConfig
from onmt_llm.errors import OnmtLlmError
from onmt_llm.optional import require
from onmt_llm.ray_cluster import connect, enter, last_line

_FEATURE = "onmt_llm_launch ray"


def train_on_ray(work: Callable[[], None], cluster: ClusterConfig, *, name: str, storage: Path) -> None:
    """Call `work` in every process of a run, on the workers of Ray Train.

    The working directory of this process must exist on all machines.

    Args:
        work: What each process does; it is pickled.
        cluster: Number of processes, their CPUs and GPUs, the address of Ray, and how often failures are retried.
        name: Name of the run, for Ray.
        storage: Folder for what Ray writes, which all machines can reach.

    Raises:
        OnmtLlmError: Of the process that failed, or that Ray failed to run the processes.
    """
    connect(cluster.ray_address, _FEATURE)
    train, torch = require("ray.train", _FEATURE, "ray"), require("ray.train.torch", _FEATURE, "ray")
    resources: dict[str, float] = {"CPU": cluster.cpus_per_process}
    if cluster.on_gpus:
        resources["GPU"] = 1
    trainer = torch.TorchTrainer(
        _in_process,
        train_loop_config={"work": work, "folder": Path.cwd(), "threads": cluster.cpus_per_process},
        scaling_config=train.ScalingConfig(
            num_workers=cluster.world_size, use_gpu=cluster.on_gpus, resources_per_worker=resources
        ),
        torch_config=torch.TorchConfig(backend="nccl" if cluster.on_gpus else "gloo", timeout_s=7200),
        run_config=train.RunConfig(
            name=name,
            storage_path=str(storage.resolve()),
            failure_config=train.FailureConfig(max_failures=cluster.max_restarts),
        ),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {})
        for failure in failures.values():
            if isinstance(failure, OnmtLlmError):
                raise failure from None
        ranks = ", ".join(str(rank) for rank in sorted(failures))
        raise OnmtLlmError(
            f"All {cluster.world_size} processes must keep running to the end, but Ray says: {last_line(error)}.",
            hint=f"the log above has the message of process {ranks}" if ranks else None,
        ) from error


def _in_process(settings: dict[str, Any]) -> None:
    """What each worker of Ray runs."""
    import torch

    from onmt_llm.log import setup_logging

    setup_logging()
    enter(settings["folder"])
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        os.environ["LOCAL_RANK"] = str(get_device().index)  # among the GPUs that this process sees
    torch.set_num_threads(settings["threads"])
    settings["work"]()
