"""Options of `onmt_llm_train` by which a run is watched more closely."""

from __future__ import annotations

from pydantic import Field, model_validator

from onmt_llm.config.numbers import Count
from onmt_llm.config.section import Section


class WatchConfig(Section):
    """Who else is told of a run, and what is measured of the machine."""

    wandb: bool = False
    """Report to Weights & Biases too; its own variables say where (`WANDB_MODE=offline` ...)."""
    mlflow: bool = False
    """Report to MLflow too; `MLFLOW_TRACKING_URI` says where."""
    tracking_project: str = "onmt_llm"
    """Project of W&B, experiment of MLflow; the run is called as `save_model`."""
    measure_flops: bool = False
    """Measure the peak of matrix products at the start, and report the share of it that training reaches (`mfu`)."""
    profile_steps: list[Count] = Field(default_factory=list)
    """First and last update to profile, `[10, 13]`: a trace for Chrome and a table go to `<save_model>_profile`."""
    profile_flops: bool = False
    """Count the floating-point operations of the updates in `profile_steps` too, by kind."""

    @model_validator(mode="after")
    def _check(self) -> WatchConfig:
        steps = self.profile_steps
        if steps and (len(steps) != 2 or steps[0] > steps[1]):
            raise ValueError(f"profile_steps must be a first and a last update, but is {steps}")
        if self.profile_flops and not steps:
            raise ValueError("profile_flops must go with profile_steps, which is empty")
        return self
