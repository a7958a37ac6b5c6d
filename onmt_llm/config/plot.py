"""Options of `onmt_llm_plot`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onmt_llm.config.numbers import Count
from onmt_llm.config.section import Names, Section


class CurvesConfig(Section):
    """Runs, metrics and layout of the plot."""

    runs: list[str] = Field(default_factory=list)
    """Runs to plot: each a `save_model`, its folder, or a metrics file; or results of `onmt_llm_eval run` (.csv), whose
    best checkpoint over all corpora is marked. May be given without the flag."""
    output: str = "curves.png"
    """Image file to write; its extension selects the format: .png, .svg or .pdf."""
    figures: Names[str] = Field(default_factory=list)
    """Metrics to plot, one panel each: any key of the metrics file (`ppl`, `lr`, `grad_norm`, `valid_news/ppl`,
    `news/xent` ...); empty = `xent` and all validation scores."""
    against: Literal["tokens", "steps", "hours"] = "steps"
    """Horizontal axis: trained tokens, steps, or hours of training."""
    log_scale: Names[Literal["x", "y"]] = Field(default_factory=list)
    """Axes with a logarithmic scale; the vertical axes of scores are always linear."""
    best: str = "ppl"
    """Validation metric that selects the best checkpoint, which is marked with a star."""
    smooth: Count = 1
    """Smooth the training curves: moving average over this many reports."""
    title: str = ""
    """Title of the plot."""


class PlotConfig(Section):
    """Plot the learning curves of training runs."""

    curves: CurvesConfig = CurvesConfig()
