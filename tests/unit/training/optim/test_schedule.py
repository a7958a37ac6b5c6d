"""Learning rates against numbers worked out by hand from the published formulas."""

from __future__ import annotations

import pytest

from onmt_llm.config.learning import OptimConfig
from onmt_llm.errors import ConfigError
from onmt_llm.training.optim.schedule import Schedule, build_schedule


def rates(method: str, steps: list[int], **settings: object) -> list[float]:
    schedule = Schedule(method=method, **settings)  # type: ignore[arg-type]
    return [schedule.rate(step) for step in steps]


def test_none_is_constant_with_warmup_and_stepwise_decay() -> None:
    assert rates("none", [1, 1000], learning_rate=0.5) == [0.5, 0.5]
    assert rates("none", [1, 5, 10, 11], learning_rate=1.0, warmup_steps=10) == pytest.approx([0.1, 0.5, 1.0, 1.0])
    decays = rates(
        "none", [99, 100, 109, 110, 120], learning_rate=1.0, start_decay_steps=100, decay_steps=10, decay=0.5
    )
    assert decays == [1.0, 0.5, 0.5, 0.25, 0.125]


def test_noam_rises_to_warmup_and_falls_with_the_root() -> None:
    # 512^-0.5 = 0.0441942, 4000^-0.5 = 0.0158114: the peak is their product, 1e-3 of it is step 4
    got = rates("noam", [4, 4000, 16000], learning_rate=2.0, warmup_steps=4000, hidden_size=512)
    assert got == pytest.approx([1.397542e-6, 1.397542e-3, 0.698771e-3], rel=1e-5)
    assert rates("noam", [4], learning_rate=1.0, hidden_size=4) == pytest.approx([0.25])


def test_noamwd_multiplies_noam_by_the_stepwise_decay() -> None:
    settings = {"learning_rate": 1.0, "hidden_size": 4, "start_decay_steps": 4, "decay_steps": 5, "decay": 0.5}
    assert rates("noamwd", [1, 4, 9], **settings) == pytest.approx([0.5, 0.125, 1 / 24])


def test_rsqrt_is_level_during_warmup() -> None:
    assert rates("rsqrt", [1, 100, 400], learning_rate=2.0, warmup_steps=100) == pytest.approx([0.2, 0.2, 0.1])


@pytest.mark.parametrize(("method", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_cosine_and_linear_end_at_the_minimum(method: str, middle: float) -> None:
    got = rates(
        method, [5, 10, 60, 110, 200], learning_rate=1.0, warmup_steps=10, train_steps=110, min_learning_rate=0.1
    )
    assert got == pytest.approx([0.5, 1.0, middle, 0.1, 0.1])


def test_cosine_is_a_cosine() -> None:
    assert rates("cosine", [25], learning_rate=1.0, train_steps=100) == pytest.approx([0.8535534])


def test_noamwd_without_a_start_decays_late_as_in_opennmt() -> None:
    schedule = build_schedule(OptimConfig(decay_method="noamwd"), train_steps=10, hidden_size=4)
    assert schedule.start_decay_steps == 50_000


def test_a_rate_that_falls_to_the_end_does_not_rise() -> None:
    settings = OptimConfig(decay_method="cosine", learning_rate=1e-5, min_learning_rate=2e-5)
    with pytest.raises(ConfigError, match="min_learning_rate must be at most learning_rate, 1e-05, but is 2e-05"):
        build_schedule(settings, train_steps=10, hidden_size=4)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'cosin' is not a known decay_method.*cosine"):
        rates("cosin", [1], learning_rate=1.0)
