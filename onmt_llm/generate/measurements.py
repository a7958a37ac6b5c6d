"""Measurements of a run's checkpoints on its validation corpora, as a CSV file.

The file is replaced as a whole, so a reader always finds complete rows.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from onmt_llm.atomic import write_text
from onmt_llm.errors import DataError


@dataclass(frozen=True)
class Measurement:
    """A row: one checkpoint on one corpus.

    Attributes:
        step: Step of the checkpoint.
        corpus: Name of the validation corpus.
        ppl: Perplexity of the trained tokens.
        loss: Cross-entropy in nats per trained token.
        tokens: Trained tokens of the corpus.
        weights: The first 16 digits of the checkpoint's fingerprint.
    """

    step: int
    corpus: str
    ppl: float
    loss: float
    tokens: int
    weights: str


COLUMNS = tuple(each.name for each in fields(Measurement))
AVERAGES: dict[str, Callable[[Sequence[float]], float]] = {"mean": statistics.fmean, "median": statistics.median}
"""Averages of the perplexities of a checkpoint over the corpora."""


def read_measurements(path: Path) -> list[Measurement]:
    """The rows of a file; none if there is no such file.

    Raises:
        DataError: It holds something else.
    """
    if not path.exists():
        return []
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        for column in COLUMNS:
            if rows.fieldnames is not None and column not in rows.fieldnames:
                raise KeyError(column)
        return [_measurement(row) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} must be a CSV file with the columns {', '.join(COLUMNS)}, but is not "
            f"({type(error).__name__}: {error}).",
            hint="name another file",
        ) from error


def _measurement(row: dict[str, str]) -> Measurement:
    figures = float(row["ppl"]), float(row["loss"]), int(row["tokens"])
    return Measurement(int(row["step"]), row["corpus"], *figures, row["weights"])


def write_measurements(path: Path, rows: Sequence[Measurement]) -> None:
    """Replace the file by one with these rows, in the order of steps and corpora."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in sorted(rows, key=lambda row: (row.step, row.corpus)))
    write_text(path, text.getvalue())


def averages(rows: Sequence[Measurement], average: Callable[[Sequence[float]], float]) -> dict[int, float]:
    """The average perplexity of each step that was measured on all corpora."""
    corpora = {row.corpus for row in rows}
    by_step: dict[int, dict[str, float]] = {}
    for row in rows:
        by_step.setdefault(row.step, {})[row.corpus] = row.ppl
    return {step: average([*found.values()]) for step, found in sorted(by_step.items()) if found.keys() == corpora}
