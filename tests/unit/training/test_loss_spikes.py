"""The watchdog: what counts as a leap of the loss."""

from __future__ import annotations

import math
import random

import pytest

from onmt_llm.errors import OnmtLlmError
from onmt_llm.training.loss_spikes import ROLLBACKS, Watchdog
from onmt_llm.training.state import Progress


def progress_after(losses: list[float], watchdog: Watchdog) -> Progress:
    progress = Progress()
    for step, loss in enumerate(losses, start=1):
        assert not watchdog(progress, loss, step)
    return progress


def test_noise_and_a_falling_loss_are_no_leap() -> None:
    rng = random.Random(2)
    losses = [8 * math.exp(-step / 300) + rng.gauss(0, 0.3) for step in range(2000)]
    progress = progress_after(losses, Watchdog("rollback", window=100))
    assert progress.losses == losses[-100:]


@pytest.mark.parametrize("loss", [9.0, math.inf, math.nan])
def test_a_leap_is_told_or_gone_back_from(
    loss: float, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    usual = [random.Random(step).gauss(3, 0.2) for step in range(60)]
    for action in ("none", "warn", "rollback"):
        watchdog = Watchdog(action, window=100)
        progress = progress_after(usual, watchdog)
        assert watchdog(progress, loss, 61) == (action == "rollback")
    finite = [record for record in caplog.messages if "the loss leaps to 9" in record]
    assert len(finite) == math.isfinite(loss)
    assert "goes back to its last checkpoint" in caplog.messages[-1]


def test_nothing_is_judged_before_there_is_something_to_compare_with() -> None:
    progress_after([1.0] * 49 + [50.0], Watchdog("rollback", window=100))


def test_it_does_not_go_back_for_ever() -> None:
    progress = Progress(losses=[1.0] * 60, rollbacks=ROLLBACKS)
    with pytest.raises(OnmtLlmError, match="must not leap again and again, but at step 61 the loss is 9"):
        Watchdog("rollback")(progress, 9.0, 61)
