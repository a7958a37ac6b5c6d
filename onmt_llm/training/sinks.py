"""Where the figures of a run go: metrics.jsonl, TensorBoard, W&B, MLflow; all behind one interface."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmt_llm.log import log_once
from onmt_llm.optional import require

Write = Callable[[str, int, dict[str, float]], None]
"""Takes the figures of a report: split ("progress" or "valid"), step, figures by name."""


def _stay(failed: bool) -> None:
    """Nothing to close."""


@dataclass(frozen=True)
class Sink:
    """A place that figures go to.

    Attributes:
        write: Takes a report.
        place: By which a run that goes on finds it again.
        close: Ends it; told whether the run failed.
    """

    write: Write
    place: str = ""
    close: Callable[[bool], None] = _stay


OpenSink = Callable[[str], Sink]
"""Opens a sink; takes the place of the run that goes on, or nothing."""


def check_trackers(*, wandb: bool, mlflow: bool) -> None:
    """Refuse to begin a run whose trackers are not installed.

    Raises:
        UnsupportedError: Names the package.
    """
    for name, wanted in (("wandb", wandb), ("mlflow", mlflow)):
        if wanted:
            require(name, f"{name}: true")


def tags(split: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Figures by `progress/...` and `valid/...`; those of single corpora, `data/<corpus>/...`, have groups already."""
    return {name if "/" in name else f"{split}/{name}": value for name, value in figures.items()}


def open_rows(path: Path, start_step: int, _: str = "") -> Sink:
    """JSON lines; rows after `start_step` (of a run that goes on) are cut."""
    cut_metrics(path, start_step)

    def write(split: str, step: int, figures: dict[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in figures.items()}
        row = {"step": step, "split": "train" if split == "progress" else split, "time": time.time(), **finite}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    return Sink(write)


def cut_metrics(path: Path, step: int) -> None:
    """Keep the rows of `path` up to `step`, so that a continued run does not write them twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _row_step(line) <= step]
    if kept == lines:
        return
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(partial, path)


def _row_step(line: str) -> float:
    """The row's step; a line cut short by a crash sorts after all others."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def open_tensorboard(log_dir: Path, start_step: int, place: str = "") -> Sink:
    """TensorBoard scalars in a folder below `log_dir`, named by the start of the run."""
    require("tensorboard", "tensorboard: true")
    # A run that goes on writes where it wrote before, so that its curve is one.
    directory = place or str(log_dir / time.strftime("%b-%d_%H-%M-%S"))
    writer = require("torch.utils.tensorboard", "tensorboard: true", "tensorboard").SummaryWriter(
        directory, purge_step=start_step + 1
    )
    log_once(f"TensorBoard events: {directory}")

    def write(split: str, step: int, figures: dict[str, float]) -> None:
        for name, value in tags(split, figures).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Sink(write, directory, lambda failed: writer.close())


def open_wandb(project: str, name: str, options: Mapping[str, Any], place: str = "") -> Sink:
    """A run of Weights & Biases; `place` is its id. Its curves are drawn against `step`, so that a run that went back
    some steps may report them again."""
    wandb = require("wandb", "wandb: true")
    run = wandb.init(project=project, name=name, config=dict(options), id=place or None, resume="allow")
    run.define_metric("*", step_metric="step")

    def write(split: str, step: int, figures: dict[str, float]) -> None:
        run.log({"step": step, **tags(split, figures)})

    return Sink(write, str(run.id), lambda failed: run.finish(exit_code=int(failed)))


def open_mlflow(project: str, name: str, options: Mapping[str, Any], place: str = "") -> Sink:
    """A run of MLflow; `place` is its id. The options are kept as the artifact `options.json`."""
    mlflow = require("mlflow", "mlflow: true")
    if place:
        run_id = mlflow.start_run(run_id=place).info.run_id
    else:
        mlflow.set_experiment(project)
        run_id = mlflow.start_run(run_name=name).info.run_id
    mlflow.log_dict(dict(options), "options.json")

    def write(split: str, step: int, figures: dict[str, float]) -> None:
        finite = {_mlflow_name(key): value for key, value in tags(split, figures).items() if math.isfinite(value)}
        mlflow.log_metrics(finite, step=step)

    return Sink(write, str(run_id), lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED"))


def _mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and few signs."""
    return re.sub(r"[^\w\-. /]", "_", name)
