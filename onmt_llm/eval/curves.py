"""Curves of a training run, read from what it has written: `<save_model>_metrics.jsonl` and the results beside it.

Results are figures that somebody found later, of checkpoints: `<save_model>_results.jsonl`, one JSON object a line with
`step` and figures, `{"step": 4000, "BLEU": 31.2}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
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
# Keys of a row that say when it was, or that are no measure of the model.
_NOT_SCORES = {"step", "split", "time", "patience", "loss", "xent", "ppl", "accuracy"}


@dataclass(frozen=True)
class Curve:
    """Points of one figure, in the order of their steps.

    Attributes:
        x: Tokens, steps or hours.
        y: The figure.
    """

    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Best:
    """The best validation of a run.

    Attributes:
        step: When it was.
        value: Of the figure that decides.
        saved: There is a checkpoint of that step.
    """

    step: int
    value: float
    saved: bool


@dataclass(frozen=True)
class Run:
    """What a run has written.

    Attributes:
        name: For the legend.
        rows: Of each split, in the order of steps.
        saved: Steps of the checkpoints that are there.
    """

    name: str
    rows: dict[Split, list[dict[str, Any]]]
    saved: frozenset[int] = frozenset()

    def curve(self, split: Split, figure: str, against: Against) -> Curve:
        """The points of a figure; those that are missing, or not finite, are left out."""
        rows = [row for row in self.rows[split] if isinstance(row.get(figure), (int, float))]
        steps = [row["step"] for row in rows]
        return Curve(self.places(steps, against), [float(row[figure]) for row in rows])

    def places(self, steps: Sequence[int], against: Against) -> list[float]:
        """Where `steps` lie on the horizontal axis; between two reports of training, in proportion.

        Raises:
            DataError: The run has no report of training to tell that by.
        """
        if against == "steps" or not steps:
            return [float(step) for step in steps]
        train = [row for row in self.rows["train"] if isinstance(row.get(_COUNTS[against]), (int, float))]
        if not train:
            raise DataError(f"{self.name} must hold reports of training to be drawn against {against}, but has none.")
        known = [0, *(row["step"] for row in train)]
        counted = [row[_COUNTS[against]] for row in train]
        values = np.cumsum([0.0, *counted]) if against == "tokens" else np.array([0.0, *counted]) / 3600
        return [float(place) for place in np.interp(steps, known, values)]

    def best(self, figure: str) -> Best | None:
        """The best validation by a figure, among those whose checkpoint is there if any is; None without any."""
        rows = [row for row in self.rows["valid"] if isinstance(row.get(figure), (int, float))]
        rows = [row for row in rows if row["step"] in self.saved] or rows
        if not rows:
            return None
        sign = 1 if higher_is_better(figure) else -1
        row = max(rows, key=lambda row: sign * row[figure])
        return Best(row["step"], row[figure], row["step"] in self.saved)

    @property
    def scores(self) -> list[str]:
        """Names of the scores of validations and of the results; those of single corpora are left out."""
        rows = [*self.rows["valid"], *self.rows["results"]]
        return sorted({key for row in rows for key in row if key not in _NOT_SCORES and "/" not in key})


def higher_is_better(figure: str) -> bool:
    """Whether the best of a figure is the highest."""
    name = figure.rsplit("/", 1)[-1]
    return SCORERS.get(name).higher_is_better if name in SCORERS.names() else name not in _LOWER_IS_BETTER


def open_runs(places: Sequence[str]) -> list[Run]:
    """The runs at `places`: each a `save_model`, the folder that holds it, or a file of metrics.

    Raises:
        ConfigError: There is nothing at one of them.
        DataError: A line cannot be read.
    """
    files = [_metrics_file(place) for place in places]
    names = [_prefix(file).name for file in files]
    if len(set(names)) < len(names):
        # runs of one name lie in folders of different names
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


def _metrics_file(place: str) -> Path:
    path = Path(place)
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
        raise ConfigError(f"{place} must hold one run, but holds {len(found)}.", hint=f"name some of {names}")
    raise ConfigError(
        f"A run must be a save_model, its folder or a file of metrics, but there is none at {place}.",
        hint=f"a run writes <save_model>{_METRICS}",
    )


def _prefix(file: Path) -> Path:
    """The `save_model` that a file of metrics belongs to."""
    return file.with_name(file.name.removesuffix(_METRICS).removesuffix(".jsonl"))


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} must hold metrics, as JSON lines in UTF-8, but cannot be read so ({error})."
        ) from error
    rows = list(_rows(file, lines))
    return sorted(rows, key=lambda row: row["step"])


def _rows(file: Path, lines: Sequence[str]) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return  # the run is at it, or was killed in the middle of a line
            raise DataError(f"{file}:{number} must be a JSON object with `step`, but is not ({error}).") from error
        yield row
