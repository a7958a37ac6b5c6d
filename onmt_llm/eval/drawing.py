"""A picture of the curves of runs, by matplotlib: a panel for each figure, a colour for each run."""

from __future__ import annotations

from collections.abc import Sequence
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
# Okabe and Ito's colours, which the colour-blind can tell apart; with more runs they come again.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def draw(
    runs: Sequence[Run],
    output: Path,
    *,
    figures: Sequence[str] = (),
    against: Against = "steps",
    log_scale: Sequence[str] = (),
    best: str = "ppl",
    smooth: int = 1,
    title: str = "",
) -> None:
    """Draw `runs` into the file `output`.

    Args:
        runs: At least one.
        output: Its ending says the format.
        figures: One panel each; none = cross-entropy and all scores.
        against: The horizontal axis.
        log_scale: "x", "y", or both.
        best: The figure that the best checkpoint is chosen by.
        smooth: Reports that a point of a training curve is the mean of.
        title: Of the picture.

    Raises:
        ConfigError: The format is unknown, or no run has one of the figures.
        UnsupportedError: matplotlib is missing.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"'output' must end in one of {', '.join(FORMATS)}, but is {output}.")
    figures = list(figures) or ["xent", *sorted({name for run in runs for name in run.scores})]
    picture = _picture(runs, title, len(figures))
    chosen = [run.best(best) for run in runs]
    shown: set[Split] = set()
    panels = picture.subplots(len(figures), squeeze=False, sharex=True)[:, 0]
    scores = {name for run in runs for name in run.scores}
    for panel, figure in zip(panels, figures, strict=True):
        shown |= _panel(panel, runs, chosen, figure, against, smooth)
        _axes(panel, figure, log_x="x" in log_scale, log_y="y" in log_scale and figure not in scores)
    panels[-1].set_xlabel(_LABELS[against])
    if against != "hours":
        panels[-1].xaxis.set_major_formatter(_ticker().EngFormatter(sep=""))
    _legend(picture, runs, chosen, best, shown)
    with atomic_file(output) as place:
        picture.savefig(place, format=output.suffix[1:])


def _picture(runs: Sequence[Run], title: str, panels: int) -> Any:
    kind = require("matplotlib.figure", "onmt_llm_plot", "matplotlib").Figure
    picture = kind(figsize=(9.0, 1.0 + 0.25 * len(runs) + 3.4 * panels), dpi=130, layout="constrained")
    if title:
        picture.suptitle(title)
    return picture


def _panel(
    panel: Any, runs: Sequence[Run], chosen: Sequence[Best | None], figure: str, against: Against, smooth: int
) -> set[Split]:
    """Draw one figure of all runs; returns the splits that have it."""
    shown: set[Split] = set()
    for number, (run, best) in enumerate(zip(runs, chosen, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        for split, style in _STYLES.items():
            curve = run.curve(split, figure, against)
            if not curve.y:
                continue
            shown.add(split)
            y = smoothed(curve.y, smooth) if split == "train" else curve.y
            # a single point has no line
            alone = {"marker": "."} if len(y) == 1 and "marker" not in style else {}
            panel.plot(curve.x, y, color=colour, **{**style, **alone})
            if best is not None and split == "valid":
                _star(panel, run, best, figure, against, colour)
    if not shown:
        known = sorted({key for run in runs for rows in run.rows.values() for row in rows for key in row})
        raise ConfigError(f"'figures' must name what a run has reported, but none has '{figure}'.", hint=str(known))
    return shown


def _star(panel: Any, run: Run, best: Best, figure: str, against: Against, colour: str) -> None:
    for row in run.rows["valid"]:
        if row["step"] == best.step and isinstance(row.get(figure), (int, float)):
            (x,) = run.places([best.step], against)
            panel.plot(
                [x],
                [row[figure]],
                marker="*",
                markersize=17,
                color=colour,
                markeredgecolor="black",
                linestyle="none",
                zorder=5,
            )


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Means over each value and up to `window` - 1 before it."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return [float(mean) for mean in (sums[ends] - sums[starts]) / (ends - starts)]


def _axes(panel: Any, figure: str, *, log_x: bool, log_y: bool) -> None:
    panel.set_ylabel(_LABELS.get(figure, figure))
    if log_x:
        panel.set_xscale("log")
    if log_y:
        panel.set_yscale("log")
        plain = _ticker().StrMethodFormatter("{x:.3g}")
        panel.yaxis.set_major_formatter(plain)
        low, high = panel.get_ylim()
        # within a decade there may be no major tick at all; beyond, the minor ones would lie on top of each other
        panel.yaxis.set_minor_formatter(plain if high < 10 * low else _ticker().NullFormatter())
    panel.grid(True, which="both", linewidth=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _ticker() -> Any:
    return require("matplotlib.ticker", "onmt_llm_plot", "matplotlib")


def _legend(picture: Any, runs: Sequence[Run], chosen: Sequence[Best | None], figure: str, shown: set[Split]) -> None:
    """Above the panels: a line for each run, with its best checkpoint, then what the kinds of lines mean."""
    line = require("matplotlib.lines", "onmt_llm_plot", "matplotlib").Line2D
    handles = [
        line([], [], color=_COLOURS[number % len(_COLOURS)], linewidth=4, label=_label(run, best, figure))
        for number, (run, best) in enumerate(zip(runs, chosen, strict=True))
    ]
    kinds = [
        line([], [], color="0.35", label=_NAMES[split], **style) for split, style in _STYLES.items() if split in shown
    ]
    if any(chosen):
        star = {"marker": "*", "markersize": 12, "linestyle": "none", "markeredgecolor": "black"}
        kinds.append(line([], [], color="0.8", label="best checkpoint", **star))
    picture.legend(handles=handles, loc="outside upper left", frameon=False)
    picture.legend(handles=kinds, loc="outside lower center", ncols=len(kinds), frameon=False)


def _label(run: Run, best: Best | None, figure: str) -> str:
    if best is None:
        return run.name
    kept = "" if best.saved or not run.saved else ", not kept"
    return f"{run.name}   (best {figure}: {best.value:.4g} at step {best.step}{kept})"
