"""`onmt_llm_launch slurm | torchrun | ray`: write the script that starts a training run on a cluster."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.atomic import write_text
from onmt_llm.cli.checks import training_problems
from onmt_llm.cli.jobs import JOBS
from onmt_llm.cli.outputs import Output, Paths
from onmt_llm.cli.run import run_action, split_action, unknown_action
from onmt_llm.cli.train import JOB as TRAINING
from onmt_llm.cli.train import training_inputs
from onmt_llm.config.launch import ClusterConfig, LaunchConfig
from onmt_llm.config.loading import flags
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.section import options_of
from onmt_llm.config.train import AUTO
from onmt_llm.config.update_size import for_processes
from onmt_llm.errors import OnmtLlmError, Problem
from onmt_llm.launching import scripts
from onmt_llm.log import logger
from onmt_llm.training.checks import check_in_backward, check_sharding

USAGE = "onmt_llm_launch slurm | torchrun | ray -config x.yaml [-nodes N] [-gpus_per_node N] [-output FILE]"
COMMAND = "onmt_llm_launch"


def main(argv: Sequence[str] | None = None) -> int:
    _, words = split_action(argv)
    actions = {name: functools.partial(work, words) for name, work in ACTIONS.items()}
    return run_action(COMMAND, argv, actions, USAGE, paths=_paths, checks=_problems)


def _paths(_: str, loaded: Loaded[Any]) -> Paths:
    output = loaded.job.cluster.output
    return Paths(list(training_inputs(loaded)), [Output("output", output)] if output else [])


def _problems(action: str, loaded: Loaded[Any]) -> Iterator[Problem]:
    if not action:
        yield unknown_action(action, ACTIONS, USAGE)
        return
    yield from training_problems(loaded)
    config: LaunchConfig = loaded.job
    cluster, size = config.cluster, config.devices.world_size
    if "world_size" in loaded.origins and size not in (cluster.world_size, 0 if not cluster.on_gpus else 1, 1):
        machines = f"{cluster.nodes} nodes with {cluster.processes} processes each"
        sentence = f"'world_size' must be {cluster.world_size} on {machines}, but is {size}."
        yield Problem(sentence, loaded.where("world_size"), hint="leave it out: the script sets it")
    sharding = functools.partial(check_sharding, quant_type=config.quantization.resolved_type)
    for check in (check_in_backward, sharding, for_processes):
        try:
            check(config, cluster.world_size)
        except OnmtLlmError as error:
            yield Problem.of(error)
    if cluster.world_size % config.devices.tensor_parallel:
        sentence = f"'tensor_parallel' must divide the number of processes, {cluster.world_size}, but is "
        yield Problem(f"{sentence}{config.devices.tensor_parallel}.", loaded.where("tensor_parallel"))
    start = config.start.train_from
    if start not in (None, AUTO) and "train_from" not in loaded.invalid:
        sentence = f"'train_from' must be {AUTO} in a run that may be started again, but is {start}."
        hint = f"train_from: {AUTO} and init_from: {start}"
        yield Problem(sentence, loaded.where("train_from"), hint=hint)
    if config.run.keep_checkpoint == 0:
        sentence = "'keep_checkpoint' must not be 0 in a run that may be started again from its newest checkpoint."
        yield Problem(sentence, loaded.where("keep_checkpoint"))
    if cluster.output and os.path.exists(cluster.output) and not cluster.overwrite_script:
        sentence = f"The output must not exist, but {cluster.output} does."
        yield Problem(sentence, loaded.where("output"), hint="-overwrite_script replaces it")


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments: those of training, with `train_from: auto` and without the number of processes, and those
    that describe the cluster, without the output. Call it when the plugins are loaded."""
    job = JOBS[COMMAND]
    parsed = flags.parse(argv, options_of(job.section, job.extra()), flags.CommandLine(COMMAND))
    training = [word for path in parsed.configs for word in ("-config", path)]
    own: list[str] = []
    for name, values in parsed.values.items():
        words = [f"-{name}", *(values if isinstance(values, list) else ())]
        if name not in ClusterConfig.model_fields:
            training += words if name not in ("world_size", "train_from") else []
        elif name not in ("output", "overwrite_script"):
            own += words
    training += [word for key, value in parsed.sets for word in ("-set", f"{key}={value}")]
    return [*training, "-train_from", AUTO], own


def _slurm(argv: Sequence[str], loaded: Loaded[Any]) -> int:
    return _write(scripts.slurm(_job(argv, loaded.job)), loaded.job.cluster)


def _torchrun(argv: Sequence[str], loaded: Loaded[Any]) -> int:
    return _write(scripts.torchrun(_job(argv, loaded.job)), loaded.job.cluster)


def _ray(argv: Sequence[str], loaded: Loaded[Any]) -> int:
    config: LaunchConfig = loaded.job
    job = _job(argv, config)
    if config.cluster.output:
        return _write(scripts.ray(job, [word for part in _split(argv) for word in part]), config.cluster)
    from onmt_llm.launching.ray_train import train_on_ray

    work = functools.partial(train_process, job.training_words)
    train_on_ray(work, config.cluster, name=job.name, storage=Path(f"{config.run.save_model}_ray"))
    return 0


def train_process(words: Sequence[str]) -> None:
    """Train in one process of a run, whose environment and process group are there already.

    Args:
        words: Arguments of `onmt_llm_train`.
    """
    from onmt_llm.training.train import train

    train(TRAINING.load(words).job)


def _job(argv: Sequence[str], config: LaunchConfig) -> scripts.TrainingJob:
    cluster = config.cluster
    name = cluster.job_name or scripts.job_name(config.run.save_model)
    script = Path(cluster.output) if cluster.output else None
    training, _ = _split(argv)
    return scripts.TrainingJob(cluster, training, Path.cwd(), name, script)


def _write(text: str, cluster: ClusterConfig) -> int:
    if cluster.output is None:
        print(text)
        return 0
    write_text(cluster.output, text + "\n")
    logger.info("Written: %s, for %d processes.", shlex.quote(cluster.output), cluster.world_size)
    return 0


ACTIONS = {"slurm": _slurm, "torchrun": _torchrun, "ray": _ray}


if __name__ == "__main__":
    raise SystemExit(main())
