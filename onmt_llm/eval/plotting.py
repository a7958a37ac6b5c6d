"""Plots of the curves of training runs (matplotlib): a panel for each metric, a colour for each run."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onmt_llm.atomic import atomic_file
from onmt_llm.errors import ConfigError
from onmt_llm.eval.curves import Against, Best, Run, Split
from onmt_llm.optional import require

FORMATS = (".png", ".svg", ".pdf")

_LABELS = {
    "tokens": "trained tokens",
    "steps": "updates (steps)",
    "hours": "training time (hours)",
    "loss": "training loss (nats / token)",
    "xent": "cross-entropy (nats / token)",
    "ppl": "perplexity",
    "accuracy": "token accuracy (%)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "speed (trained tokens / s)",
    "positions_per_second": "speed (positions / s)",
    "data_wait": "waiting for data (share of time)",
    "mfu": "FLOP utilisation (share of peak)",
}
_STYLES: dict[Split, dict[str, Any]] = {
    "train": {"linewidth": 1.0, "alpha": 0.55},
    "valid": {"linewidth": 1.8, "marker": "o", "markersize": 4.5},
    "results": {"linewidth": 1.4, "marker": "s", "markersize": 5.0, "linestyle": "--"},
}
_NAMES: dict[Split, str] = {"train": "training", "valid": "validation", "results": "results"}
# Okabe and Ito's colours, which colour-blind readers can tell apart; more runs repeat them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


@dataclass(frozen=True)
class PlotStyle:
    """How curves are plotted.

    Attributes:
        against: The horizontal axis.
        log_scale: Axes with a logarithmic scale: "x", "y", or both.
        smooth: Each point of a training curve is the mean of this many reports.
        title: Title of the plot.
    """

    against: Against = "steps"
    log_scale: Sequence[str] = ()
    smooth: int = 1
    title: str = ""


def plot_runs(
    runs: Sequence[Run], output: Path, *, metrics: Sequence[str] = (), best: str = "ppl", style: PlotStyle = PlotStyle()
) -> None:
    """Plot `runs` into the image file `output`.

    Args:
        runs: At least one run.
        output: Its extension selects the format.
        metrics: One panel each; none = cross-entropy and all scores.
        best: Metric that selects the best checkpoint.
        style: Axes, smoothing and title.

    Raises:
        ConfigError: The format is unknown, or no run has one of the metrics.
        UnsupportedError: matplotlib is missing.
    """
    check_format(output)
    scores = {name for run in runs for name in run.scores}
    metrics = list(metrics) or ["xent", *sorted(scores)]
    figure = new_figure(runs, style.title, len(metrics))
    chosen = [run.best(best) for run in runs]
    shown: set[Split] = set()
    panels = figure.subplots(len(metrics), squeeze=False, sharex=True)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        shown |= _plot_panel(panel, runs, chosen, metric, style)
        log_y = "y" in style.log_scale and metric not in scores
        set_axes(panel, metric, log_x="x" in style.log_scale, log_y=log_y)
    panels[-1].set_xlabel(_LABELS[style.against])
    if style.against != "hours":
        panels[-1].xaxis.set_major_formatter(_ticker().EngFormatter(sep=""))
    _add_legends(figure, runs, chosen, best, shown)
    with atomic_file(output) as unfinished:
        figure.savefig(unfinished, format=output.suffix[1:])


def check_format(output: Path) -> None:
    """Refuse an image format that is not known.

    Raises:
        ConfigError: The extension is none of `FORMATS`.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"'output' must end in one of {', '.join(FORMATS)}, but is {output}.")


def colour(number: int) -> str:
    """The colour of a line by its number."""
    return _COLOURS[number % len(_COLOURS)]


def new_figure(lines: Sized, title: str, panels: int) -> Any:
    """A figure with room for so many panels, and a legend of so many lines."""
    kind = require("matplotlib.figure", "onmt_llm_plot", "matplotlib").Figure
    figure = kind(figsize=(9.0, 1.0 + 0.25 * len(lines) + 3.4 * panels), dpi=130, layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


def _plot_panel(
    panel: Any, runs: Sequence[Run], chosen: Sequence[Best | None], metric: str, plot: PlotStyle
) -> set[Split]:
    """Plot one metric of all runs; returns the splits that have it."""
    shown: set[Split] = set()
    for number, (run, best) in enumerate(zip(runs, chosen, strict=True)):
        shade = colour(number)
        for split, style in _STYLES.items():
            curve = run.curve(split, metric, plot.against)
            if not curve.y:
                continue
            shown.add(split)
            y = smoothed(curve.y, plot.smooth) if split == "train" else curve.y
            # a single point has no line, so it gets a marker
            alone = {"marker": "."} if len(y) == 1 and "marker" not in style else {}
            panel.plot(curve.x, y, color=shade, **{**style, **alone})
            if best is not None and split == "valid":
                _mark_best(panel, run, best, metric, plot.against, shade)
    if not shown:
        known = sorted({key for run in runs for rows in run.rows.values() for row in rows for key in row})
        raise ConfigError(
            f"'figures' must name metrics that a run has reported, but none has '{metric}'.", hint=str(known)
        )
    return shown


def _mark_best(panel: Any, run: Run, best: Best, metric: str, against: Against, shade: str) -> None:
    for row in run.rows["valid"]:
        if row["step"] == best.step and isinstance(row.get(metric), (int, float)):
            (x,) = run.positions([best.step], against)
            panel.plot(
                [x],
                [row[metric]],
                marker="*",
                markersize=17,
                color=shade,
                markeredgecolor="black",
                linestyle="none",
                zorder=5,
            )


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Moving average over each value and up to `window` - 1 values before it."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return [float(mean) for mean in (sums[ends] - sums[starts]) / (ends - starts)]


def set_axes(panel: Any, metric: str, *, log_x: bool, log_y: bool) -> None:
    """Label and scale the axes of a panel."""
    panel.set_ylabel(_LABELS.get(metric, metric))
    if log_x:
        panel.set_xscale("log")
    if log_y:
        panel.set_yscale("log")
        plain = _ticker().StrMethodFormatter("{x:.3g}")
        panel.yaxis.set_major_formatter(plain)
        low, high = panel.get_ylim()
        # within a decade there may be no major tick at all; with more, the minor labels would overlap
        panel.yaxis.set_minor_formatter(plain if high < 10 * low else _ticker().NullFormatter())
    panel.grid(True, which="both", linewidth=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _ticker() -> Any:
    return require("matplotlib.ticker", "onmt_llm_plot", "matplotlib")


def _add_legends(
    figure: Any, runs: Sequence[Run], chosen: Sequence[Best | None], metric: str, shown: set[Split]
) -> None:
    """Above the panels the runs with their best checkpoints, below them the kinds of lines."""
    line = require("matplotlib.lines", "onmt_llm_plot", "matplotlib").Line2D
    handles = [
        line([], [], color=colour(number), linewidth=4, label=_label(run, best, metric))
        for number, (run, best) in enumerate(zip(runs, chosen, strict=True))
    ]
    kinds = [
        line([], [], color="0.35", label=_NAMES[split], **style) for split, style in _STYLES.items() if split in shown
    ]
    if any(chosen):
        star = {"marker": "*", "markersize": 12, "linestyle": "none", "markeredgecolor": "black"}
        kinds.append(line([], [], color="0.8", label="best checkpoint", **star))
    figure.legend(handles=handles, loc="outside upper left", frameon=False)
    figure.legend(handles=kinds, loc="outside lower center", ncols=len(kinds), frameon=False)


def _label(run: Run, best: Best | None, metric: str) -> str:
    if best is None:
        return run.name
    note = "" if best.saved or not run.saved else ", not kept"
    return f"{run.name}   (best {metric}: {best.value:.4g} at step {best.step}{note})"
