"""Time limits."""

from __future__ import annotations

import pytest

from onmt_llm.config.training.safety import SafetyConfig, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1.5s", 1.5), ("45m", 2700), ("11h30m", 41400), ("2d", 172800), ("23:30:00", 84600), ("2:05", 125)],
)
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected == SafetyConfig(max_time=text).max_seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "1x", "-5"])
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time such as 11h30m"):
        SafetyConfig(max_time=text)


def test_a_number_in_yaml_is_a_time_in_seconds() -> None:
    assert SafetyConfig.model_validate({"max_time": 90}).max_seconds == 90
    assert SafetyConfig().max_seconds is None
