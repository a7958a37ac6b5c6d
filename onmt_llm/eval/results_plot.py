"""Plots of the measurements of checkpoints (`onmt_llm_eval run`): a panel for each file, a line for each corpus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmt_llm.atomic import atomic_file
from onmt_llm.errors import DataError
from onmt_llm.eval.plotting import PlotStyle, check_format, colour, new_figure, set_axes
from onmt_llm.generate.measurements import AVERAGES, Measurement, averages, read_measurements

_LINES = {"mean": "-", "median": "--"}


def best_steps(rows: Sequence[Measurement]) -> dict[str, tuple[int, float]]:
    """The best step and its perplexity by each average over the corpora; none before a step is measured on all, or if
    no average is finite."""
    found = {name: averages(rows, average) for name, average in AVERAGES.items()}
    finite = {name: {step: ppl for step, ppl in each.items() if math.isfinite(ppl)} for name, each in found.items()}
    return {name: min(each.items(), key=lambda item: item[1]) for name, each in finite.items() if each}


def plot_results(files: Sequence[Path], output: Path, *, style: PlotStyle) -> dict[Path, dict[str, tuple[int, float]]]:
    """Plot files of measurements into the image file `output`; stars mark the best checkpoints.

    Args:
        files: CSV files.
        output: Its extension selects the format.
        style: Logarithmic scales and the title.

    Returns:
        The best steps of each file; see `best_steps`.

    Raises:
        ConfigError: The format is unknown.
        DataError: A file is missing, or has no measurements.
        UnsupportedError: matplotlib is missing.
    """
    check_format(output)
    measured = {file: read_measurements(file) for file in files}
    for file, rows in measured.items():
        if not rows:
            found = "holds none" if file.exists() else "there is no such file"
            raise DataError(f"{file} must hold at least one measurement, but {found}.")
    figure = new_figure(measured, style.title, len(measured))
    panels = figure.subplots(len(measured), squeeze=False)[:, 0]
    for panel, (file, rows) in zip(panels, measured.items(), strict=True):
        _plot(panel, rows)
        set_axes(panel, "ppl", log_x="x" in style.log_scale, log_y="y" in style.log_scale)
        panel.set_title(file.name, loc="left", fontsize="medium")
        panel.set_xlabel("updates (steps)")
        panel.legend(frameon=False, fontsize="small")
    with atomic_file(output) as unfinished:
        figure.savefig(unfinished, format=output.suffix[1:])
    return {file: best_steps(rows) for file, rows in measured.items()}


def _plot(panel: Any, rows: Sequence[Measurement]) -> None:
    for number, corpus in enumerate(dict.fromkeys(row.corpus for row in rows)):
        points = sorted((row.step, row.ppl) for row in rows if row.corpus == corpus)
        panel.plot(*zip(*points, strict=True), color=colour(number), linewidth=1.2, marker=".", label=corpus)
    for name, (step, value) in best_steps(rows).items():
        points = sorted(averages(rows, AVERAGES[name]).items())
        label = f"{name} of all corpora (best: {value:.4g} at step {step})"
        panel.plot(*zip(*points, strict=True), color="black", linewidth=1.8, linestyle=_LINES[name], label=label)
        panel.plot([step], [value], marker="*", markersize=15, color="white", markeredgecolor="black", zorder=5)
