"""Experiment trackers, model FLOPs utilisation and the profiler."""

from __future__ import annotations

from pydantic import Field, model_validator

from onmt_llm.config.numbers import Count
from onmt_llm.config.section import Section


class TrackingConfig(Section):
    """Experiment trackers (W&B, MLflow), MFU and the profiler."""

    wandb: bool = False
    """Also log to Weights & Biases, which is configured by its environment variables (`WANDB_MODE=offline` ...)."""
    mlflow: bool = False
    """Also log to MLflow, at `MLFLOW_TRACKING_URI`."""
    tracking_project: str = "onmt_llm"
    """Project in W&B, experiment in MLflow; the run is named after `save_model`."""
    measure_flops: bool = False
    """Measure the peak speed of matrix products at the start, and report the share that training reaches (`mfu`)."""
    profile_steps: list[Count] = Field(default_factory=list)
    """First and last step to profile, e.g. `[10, 13]`; writes a Chrome trace and a table to `<save_model>_profile`."""
    profile_flops: bool = False
    """Also count the floating-point operations of the steps in `profile_steps`, by kind."""

    @model_validator(mode="after")
    def _check(self) -> TrackingConfig:
        steps = self.profile_steps
        if steps and (len(steps) != 2 or steps[0] > steps[1]):
            raise ValueError(f"profile_steps must be a first and a last step, but is {steps}")
        if self.profile_flops and not steps:
            raise ValueError("profile_flops must go with profile_steps, which is empty")
        return self
