"""Sinks for metrics: metrics.jsonl, TensorBoard, Weights & Biases and MLflow behind one interface."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from onmt_llm.atomic import is_written_in_place, write_text
from onmt_llm.errors import DataError
from onmt_llm.log import log_once, logger
from onmt_llm.optional import require

Write = Callable[[str, int, dict[str, float]], None]
"""Writes a report: split ("progress" or "valid"), step, metrics by name."""


def _keep_open(failed: bool) -> None:
    """Nothing to close."""


@dataclass(frozen=True)
class Sink:
    """A destination for metrics.

    Attributes:
        write: Writes a report.
        place: Identifies the destination, so that a resumed run finds it again.
        close: Closes it; the argument says whether the run failed.
    """

    write: Write
    place: str = ""
    close: Callable[[bool], None] = _keep_open


OpenSink = Callable[[str], Sink]
"""Opens a sink; the argument is the `place` of the resumed run, or empty."""


def check_trackers(*, wandb: bool, mlflow: bool) -> None:
    """Refuse to start a run whose trackers are not installed.

    Raises:
        UnsupportedError: Names the package.
    """
    for name, wanted in (("wandb", wandb), ("mlflow", mlflow)):
        if wanted:
            require(name, f"{name}: true")


def tags(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as `progress/...` and `valid/...`; names of single corpora, `data/<corpus>/...`, are kept."""
    return {name if "/" in name else f"{split}/{name}": value for name, value in metrics.items()}


def open_jsonl(path: Path, start_step: int, _: str = "") -> Sink:
    """JSON lines; the rows after `start_step` of a resumed run are removed.

    Raises:
        DataError: The file holds something else.
    """
    truncate_metrics(path, start_step)
    rows = JsonLinesFile(path)

    def write(split: str, step: int, metrics: dict[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        row = {"step": step, "split": "train" if split == "progress" else split, "time": time.time(), **finite}
        rows.write(json.dumps(row) + "\n")

    return Sink(write, close=lambda failed: rows.close())


class JsonLinesFile:
    """A text file to append to. If it is removed in the meantime, it is rewritten with its whole content.

    Args:
        path: The file; a device or a pipe is possible.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._grows = not is_written_in_place(path)
        self._file = self._open()

    def _open(self) -> TextIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return open(self._path, "a+" if self._grows else "w", encoding="utf-8")

    def write(self, line: str) -> None:
        """Append a line and flush it, so that readers of the file see it at once."""
        if self._grows:
            self._find_again()
        self._file.write(line)
        self._file.flush()

    def _find_again(self) -> None:
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                return
            rows = ""  # another file was put there
        except FileNotFoundError:
            logger.warning("%s was removed during the run: it is rewritten.", self._path)
            self._file.seek(0)
            rows = self._file.read()
        self._file.close()
        self._file = self._open()
        self._file.write(rows)

    def close(self) -> None:
        self._file.close()


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the rows of `path` up to `step`, so that a resumed run does not write them twice.

    Raises:
        DataError: The file holds something else than rows, which would be lost.
    """
    if is_written_in_place(path) or not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        steps = [_row_step(line) for line in lines]
        if lines and steps[-1] is None and lines[-1].strip("\0")[:1] in ("", "{"):
            steps[-1] = math.inf  # truncated by a crash or a power failure
        strange = steps.index(None) + 1 if None in steps else None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The metrics file {path} must be UTF-8 text, but cannot be read as such ({error}).") from error
    if strange is not None:
        raise DataError(
            f"{path}:{strange} must be a row of metrics, a JSON object with `step`, but is not.",
            hint="move the file away, or give the run another metrics_file",
        )
    kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    if kept != lines:
        write_text(path, "".join(f"{line}\n" for line in kept))


def _row_step(line: str) -> float | None:
    """The row's step; None where it is no row."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def open_tensorboard(log_dir: Path, start_step: int, place: str = "") -> Sink:
    """TensorBoard scalars in a folder below `log_dir`, named by the start time of the run."""
    require("tensorboard", "tensorboard: true")
    # A resumed run writes to the same place, so that it has one curve.
    directory = place or str(log_dir / time.strftime("%b-%d_%H-%M-%S"))
    writer = require("torch.utils.tensorboard", "tensorboard: true", "tensorboard").SummaryWriter(
        directory, purge_step=start_step + 1
    )
    log_once(f"TensorBoard events: {directory}")

    def write(split: str, step: int, metrics: dict[str, float]) -> None:
        for name, value in tags(split, metrics).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Sink(write, directory, lambda failed: writer.close())


def open_wandb(project: str, name: str, options: Mapping[str, Any], place: str = "") -> Sink:
    """A run of Weights & Biases; `place` is its id. Curves are plotted against `step`, so a run that rolled back can
    report steps again."""
    wandb = require("wandb", "wandb: true")
    run = wandb.init(project=project, name=name, config=dict(options), id=place or None, resume="allow")
    run.define_metric("*", step_metric="step")

    def write(split: str, step: int, metrics: dict[str, float]) -> None:
        run.log({"step": step, **tags(split, metrics)})

    return Sink(write, str(run.id), lambda failed: run.finish(exit_code=int(failed)))


def open_mlflow(project: str, name: str, options: Mapping[str, Any], place: str = "") -> Sink:
    """A run of MLflow; `place` is its id. The options are saved as the artifact `options.json`."""
    mlflow = require("mlflow", "mlflow: true")
    if place:
        run_id = mlflow.start_run(run_id=place).info.run_id
    else:
        mlflow.set_experiment(project)
        run_id = mlflow.start_run(run_name=name).info.run_id
    mlflow.log_dict(dict(options), "options.json")

    def write(split: str, step: int, metrics: dict[str, float]) -> None:
        finite = {_mlflow_name(key): value for key, value in tags(split, metrics).items() if math.isfinite(value)}
        mlflow.log_metrics(finite, step=step)

    return Sink(write, str(run_id), lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED"))


def _mlflow_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits and few other characters."""
    return re.sub(r"[^\w\-. /]", "_", name)
