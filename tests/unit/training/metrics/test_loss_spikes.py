"""`training.metrics.loss_spikes`: what counts as a loss spike."""

from __future__ import annotations

import math
import random

import pytest

from onmt_llm.errors import OnmtLlmError
from onmt_llm.training.metrics.loss_spikes import MAX_ROLLBACKS, SpikeDetector
from onmt_llm.training.state import Progress


def progress_after(losses: list[float], spike_detector: SpikeDetector) -> Progress:
    progress = Progress()
    for step, loss in enumerate(losses, start=1):
        assert not spike_detector(progress, loss, step)
    return progress


def test_noise_and_a_falling_loss_are_no_spike() -> None:
    rng = random.Random(2)
    losses = [8 * math.exp(-step / 300) + rng.gauss(0, 0.3) for step in range(2000)]
    progress = progress_after(losses, SpikeDetector("rollback", window=100))
    assert progress.losses == losses[-100:]


@pytest.mark.parametrize("loss", [9.0, math.inf, math.nan])
def test_a_spike_is_logged_or_rolled_back(
    loss: float, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    usual = [random.Random(step).gauss(3, 0.2) for step in range(60)]
    for action in ("none", "warn", "rollback"):
        spike_detector = SpikeDetector(action, window=100)
        progress = progress_after(usual, spike_detector)
        assert spike_detector(progress, loss, 61) == (action == "rollback")
    finite = [record for record in caplog.messages if "loss spike: 9" in record]
    assert len(finite) == math.isfinite(loss)
    assert "goes back to its last checkpoint" in caplog.messages[-1]


def test_no_loss_is_a_spike_before_there_is_something_to_compare_with() -> None:
    progress_after([1.0] * 49 + [50.0], SpikeDetector("rollback", window=100))


def test_it_does_not_go_back_for_ever() -> None:
    progress = Progress(losses=[1.0] * 60, rollbacks=MAX_ROLLBACKS)
    with pytest.raises(OnmtLlmError, match="must not recur, but at step 61 the loss is 9"):
        SpikeDetector("rollback")(progress, 9.0, 61)
