"""Curves of training runs, read from `<save_model>_metrics.jsonl` and the results beside it.

Results are metrics of checkpoints that were measured later: `<save_model>_results.jsonl`, one JSON object per line with
`step` and metrics, `{"step": 4000, "BLEU": 31.2}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.scorers import SCORERS

Against = Literal["tokens", "steps", "hours"]
_COUNTS: dict[str, str] = {"tokens": "tokens", "hours": "elapsed"}
Split = Literal["train", "valid", "results"]

_METRICS, _RESULTS = "_metrics.jsonl", "_results.jsonl"
_LOWER_IS_BETTER = {"loss", "xent", "ppl"}
# Keys of a row that are not scores.
_NOT_SCORES = {"step", "split", "time", "patience", "loss", "xent", "ppl", "accuracy"}


@dataclass(frozen=True)
class Curve:
    """Points of one metric, in order of steps.

    Attributes:
        x: Tokens, steps or hours.
        y: Values of the metric.
    """

    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Best:
    """The best validation of a run.

    Attributes:
        step: Its step.
        value: Its value of the metric that decides.
        saved: Whether there is a checkpoint of that step.
    """

    step: int
    value: float
    saved: bool


@dataclass(frozen=True)
class Run:
    """The metrics of a run.

    Attributes:
        name: Its name in the legend.
        rows: Rows of each split, in order of steps.
        saved: Steps with a checkpoint.
    """

    name: str
    rows: dict[Split, list[dict[str, Any]]]
    saved: frozenset[int] = frozenset()

    def curve(self, split: Split, metric: str, against: Against) -> Curve:
        """The points of a metric, without missing and non-finite values."""
        rows = [row for row in self.rows[split] if isinstance(row.get(metric), (int, float))]
        steps = [row["step"] for row in rows]
        return Curve(self.positions(steps, against), [float(row[metric]) for row in rows])

    def positions(self, steps: Sequence[int], against: Against) -> list[float]:
        """Positions of `steps` on the horizontal axis, interpolated between the training reports.

        Raises:
            DataError: The run has no training reports.
        """
        if against == "steps" or not steps:
            return [float(step) for step in steps]
        train = [row for row in self.rows["train"] if isinstance(row.get(_COUNTS[against]), (int, float))]
        if not train:
            raise DataError(f"{self.name} must hold reports of training to be plotted against {against}, but has none.")
        known = [0, *(row["step"] for row in train)]
        counted = [row[_COUNTS[against]] for row in train]
        values = np.cumsum([0.0, *counted]) if against == "tokens" else np.array([0.0, *counted]) / 3600
        return [float(x) for x in np.interp(steps, known, values)]

    def best(self, metric: str) -> Best | None:
        """The best validation by a metric, preferably one with a checkpoint; None if no validation has it."""
        rows = [row for row in self.rows["valid"] if isinstance(row.get(metric), (int, float))]
        rows = [row for row in rows if row["step"] in self.saved] or rows
        if not rows:
            return None
        sign = 1 if higher_is_better(metric) else -1
        row = max(rows, key=lambda row: sign * row[metric])
        return Best(row["step"], row[metric], row["step"] in self.saved)

    @property
    def scores(self) -> list[str]:
        """Names of the scores of validations and results, without those of single corpora."""
        rows = [*self.rows["valid"], *self.rows["results"]]
        return sorted({key for row in rows for key in row if key not in _NOT_SCORES and "/" not in key})


def higher_is_better(metric: str) -> bool:
    """Whether higher values of a metric are better."""
    name = metric.rsplit("/", 1)[-1]
    return SCORERS.get(name).higher_is_better if name in SCORERS.names() else name not in _LOWER_IS_BETTER


def open_runs(paths: Sequence[str]) -> list[Run]:
    """Read the runs at `paths`: each a `save_model`, its folder, or a metrics file.

    Raises:
        ConfigError: There is no run at one of them.
        DataError: A line cannot be read.
    """
    files = [_metrics_file(path) for path in paths]
    names = [_prefix(file).name for file in files]
    if len(set(names)) < len(names):
        # tell runs of the same name apart by their folders
        names = [f"{file.resolve().parent.name}/{name}" for file, name in zip(files, names, strict=True)]
    return [_open_run(file, name) for file, name in zip(files, names, strict=True)]


def _open_run(file: Path, name: str) -> Run:
    prefix = _prefix(file)
    results = prefix.with_name(prefix.name + _RESULTS)
    rows = _read(file)
    pattern = re.compile(re.escape(prefix.name) + r"_step_(\d+)")
    matches = (pattern.fullmatch(path.name) for path in prefix.parent.iterdir())
    return Run(
        name,
        {
            "train": [row for row in rows if row.get("split") == "train"],
            "valid": [row for row in rows if row.get("split") == "valid"],
            "results": _read(results) if results.is_file() else [],
        },
        frozenset(int(match[1]) for match in matches if match),
    )


def _metrics_file(given: str) -> Path:
    path = Path(given)
    if path.is_file():
        return path
    beside = path.with_name(path.name + _METRICS)
    if beside.is_file():
        return beside
    found = sorted(path.glob(f"*{_METRICS}")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(each)[: -len(_METRICS)] for each in found)
        raise ConfigError(f"{given} must hold one run, but holds {len(found)}.", hint=f"name some of {names}")
    raise ConfigError(
        f"A run must be a save_model, its folder or a metrics file, but there is none at {given}.",
        hint=f"a run writes <save_model>{_METRICS}",
    )


def _prefix(file: Path) -> Path:
    """The `save_model` of a metrics file."""
    return file.with_name(file.name.removesuffix(_METRICS).removesuffix(".jsonl"))


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} must hold metrics as JSON lines in UTF-8, but cannot be read ({error}).") from error
    rows = list(_rows(file, lines))
    return sorted(rows, key=lambda row: row["step"])


def _rows(file: Path, lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return  # the run is writing this line, or was killed while it did
            raise DataError(f"{file}:{number} must be a JSON object with `step`, but is not ({error}).") from error
        yield row
