"""Validation of a run's checkpoints beside the run, or after it: each on each validation corpus, once.

The results are a CSV file (`generate/measurements.py`), which can be read at any time; after an interruption the same
command resumes where it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.spec import split_corpora
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.generate.measurements import Measurement, read_measurements, write_measurements
from onmt_llm.locks import lock_file
from onmt_llm.log import logger
from onmt_llm.nn.device import resolve_device
from onmt_llm.training.checkpointing.train_from import resume_update, with_start_options
from onmt_llm.training.metrics.totals import Totals
from onmt_llm.training.parallel import TrainingModule
from onmt_llm.training.process.dist import World
from onmt_llm.training.run_folder import pass_over, watched_checkpoints
from onmt_llm.training.setup.inputs import open_objective, open_pipeline
from onmt_llm.training.setup.model import build_training_model, run_precision
from onmt_llm.training.setup.run_setup import open_run_setup
from onmt_llm.training.validation.validate import validate


def measure_run(config: TrainConfig, output: Path, *, watch: float = 0) -> int:
    """Measure the checkpoints of a run that are not in `output` yet, as validation during training does.

    A checkpoint that was written again with other weights is measured again, and its rows are replaced. One that the
    run removes before it is measured is left out, with a warning.

    Args:
        config: The options of the run.
        output: The CSV file.
        watch: Seconds between two looks at the run's folder, until the run has ended or the checkpoint of `train_steps`
            is measured; 0 = one look.

    Returns:
        Number of rows that were added or replaced.

    Raises:
        ConfigError: There is no validation corpus, or without `watch` no checkpoint.
        DataError: `output` holds something else, or a corpus cannot be read.
        CheckpointError: Another process writes `output`, or a checkpoint is damaged.
    """
    if not split_corpora(config.corpora.data)[1]:
        raise ConfigError("onmt_llm_eval run needs a corpus named `valid` or `valid_...` in `data`, but there is none.")
    measured = 0
    with locked(output):
        for found, last in watched_checkpoints(config.run.save_model, every=watch):
            for step, path in found.items():
                measured += _measure_checkpoint(config, step, path, output, last=last)
            if any(row.step == config.run.train_steps for row in read_measurements(output)):
                break
    return measured


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """The right to be the only process that writes `output`."""
    held = CheckpointError(
        f"{output} must be written by one process, but another one is writing it.",
        hint="wait until it has ended, or name another file",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    file = output.with_name(f".{output.name}.lock")
    descriptor = lock_file(file, held)
    try:
        yield
    finally:
        if descriptor is not None:
            file.unlink(missing_ok=True)
            os.close(descriptor)


def _measure_checkpoint(config: TrainConfig, step: int, path: Path, output: Path, *, last: bool) -> int:
    """Measure one checkpoint on the corpora that are missing; returns their number."""
    rows = read_measurements(output)
    measured = 0
    try:
        weights = Checkpoint.open(path).fingerprint[:16]
        rows = [row for row in rows if row.step != step or row.weights == weights]
        done = {row.corpus for row in rows if row.step == step}
        missing = [name for name in split_corpora(config.corpora.data)[1] if name not in done]
        if not missing:
            return 0
        for name, totals in _validated(config, path, missing):
            rows.append(Measurement(step, name, totals.ppl, totals.xent, int(totals.tokens), weights))
            write_measurements(output, rows)
            logger.info("Step %d on %s: ppl %.4f, loss %.4f, %d tokens.", step, name, *_figures(totals))
            measured += 1
    except (CheckpointError, OSError) as error:
        pass_over(path, error, last=last)
    return measured


def _figures(totals: Totals) -> tuple[float, float, int]:
    return totals.ppl, totals.xent, int(totals.tokens)


def _validated(config: TrainConfig, path: Path, corpora: list[str]) -> Iterator[tuple[str, Totals]]:
    """Totals of a checkpoint on each of `corpora`: the model is built as the run builds it to resume from there."""
    world = World(0, 1, resolve_device(config.devices.device))
    config = with_start_options(config, resume_update(str(path)))
    setup = open_run_setup(config)
    start, layers, performance = setup.start, setup.layers, config.performance
    precision = run_precision(performance, layers, loss_scale=config.optimizer.loss_scale, device=world.device)
    model = build_training_model(config, start, layers, precision, world)
    objective = open_objective(config, config.optimizer, start, layers, world.device).for_validation
    valid = split_corpora(config.corpora.data)[1]
    for name in corpora:
        corpus = {name: valid[name]}
        pipeline = open_pipeline(config, start.codec, corpus, training=False, seed=max(config.run.seed, 0), world=world)
        found = validate(TrainingModule(model), {name: pipeline}, precision=precision, world=world, objective=objective)
        yield name, found[name]
