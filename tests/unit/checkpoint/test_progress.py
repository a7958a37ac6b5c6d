"""`TensorProgress`: log lines with rate and time left, and a bar in a terminal."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from onmt_llm import progress
from onmt_llm.checkpoint.progress import TensorProgress


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_tell_how_far_a_long_conversion_is(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onmt_llm")
    with TensorProgress("merge", [10_000_000, 30_000_000, 40_000_000]) as bar:
        clock.now += 20
        bar.add(10_000_000)
        clock.now += 20
        bar.add(30_000_000)
        clock.now += 10
        bar.add(40_000_000)
    assert [record.message for record in caplog.records] == [
        "merge: 2 of 3 tensors, 40 of 80 MB, 1 MB/s, 40 s left",
        "merge: 3 of 3 tensors, 80 of 80 MB, 2 MB/s, 0 s left",
    ]


def test_a_short_conversion_says_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onmt_llm")
    with TensorProgress("merge", [1, 1]) as bar:
        clock.now += 20
        bar.add(1, 1)
    assert not caplog.records


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with TensorProgress("merge", [4_000_000, 4_000_000]) as bar:
        bar.add(4_000_000)
        bar._progress._bar.refresh()
    shown = terminal.getvalue()
    assert "merge:  50%" in shown and "4.00M/8.00M" in shown and "1/2 tensors" in shown
