"""Options of the profiler."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.training.tracking import TrackingConfig


@pytest.mark.parametrize("steps", [[5], [5, 4], [1, 2, 3]])
def test_the_profiled_steps_are_a_first_and_a_last_one(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="profile_steps must be a first and a last step, but is"):
        TrackingConfig(profile_steps=steps)
    assert TrackingConfig(profile_steps=[4, 4], profile_flops=True).profile_steps == [4, 4]


@pytest.mark.parametrize("values", [{"profile_flops": True}, {"profile_flops": True, "profile_steps": []}])
def test_operations_are_counted_in_profiled_steps_only(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="profile_flops must go with profile_steps, which is empty"):
        TrackingConfig.model_validate(values)
