"""Options of `onmt_llm_plot`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onmt_llm.config.numbers import Count
from onmt_llm.config.section import Section


class CurvesConfig(Section):
    """What is drawn, and how."""

    runs: list[str] = Field(default_factory=list)
    """Runs: each a `save_model`, its folder, or a file of metrics; may stand first, without the flag."""
    output: str = "curves.png"
    """Picture to write; its ending says the format: .png, .svg or .pdf."""
    figures: list[str] = Field(default_factory=list)
    """Figures to draw, a panel each: any key of the metrics (`ppl`, `lr`, `grad_norm`, `valid_news/ppl`,
    `news/xent` ...); empty = `xent`, and the scores of validations and results that there are."""
    against: Literal["tokens", "steps", "hours"] = "steps"
    """The horizontal axis: trained tokens, updates, or hours of training."""
    log_scale: list[Literal["x", "y"]] = Field(default_factory=list)
    """Axes with a logarithmic scale; the vertical ones of scores never have it."""
    best: str = "ppl"
    """Figure of the validations by which the best checkpoint is chosen, to be marked with a star."""
    smooth: Count = 1
    """Training curves are means over this many reports."""
    title: str = ""
    """Title of the picture."""


class PlotConfig(Section):
    """Draw the curves of training runs."""

    curves: CurvesConfig = CurvesConfig()
