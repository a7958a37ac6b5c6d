"""Signals to save or stop, and the thread that saves."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from onmt_llm.errors import CheckpointError
from onmt_llm.training.checkpointing.background import BackgroundTask
from onmt_llm.training.process import signals as requests
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.signals import SignalHandler, SignalRequest
from onmt_llm.training.result import RunStatus

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_an_end_and_a_second_one_takes_it(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_SAME_REQUEST_S", 0.0)
    before = signal.getsignal(number)
    with SignalHandler() as outside:
        assert outside.poll(ALONE) == SignalRequest()
        os.kill(os.getpid(), number)
        assert outside.poll(ALONE) == SignalRequest(stop=RunStatus.INTERRUPTED) and outside.name == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_sigterm_that_arrives_twice_is_one_request() -> None:
    with SignalHandler() as outside:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert outside.poll(ALONE) == SignalRequest(stop=RunStatus.INTERRUPTED)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_or_a_file_asks_for_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_CHECK_INTERVAL_S", 0.0)
    file = tmp_path / "m.save"
    with SignalHandler(save_file=file) as outside:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert outside.poll(ALONE) == SignalRequest(save=True)
        assert outside.poll(ALONE) == SignalRequest()
        file.touch()
        assert outside.poll(ALONE) == SignalRequest(save=True)
        assert not file.exists() and outside.poll(ALONE) == SignalRequest()


def test_time_that_is_up_asks_for_an_end() -> None:
    with SignalHandler(deadline=time.monotonic() + 3600) as early, SignalHandler(deadline=time.monotonic() - 1) as late:
        assert early.poll(ALONE) == SignalRequest() and late.poll(ALONE) == SignalRequest(stop=RunStatus.OUT_OF_TIME)


@pytest.mark.parametrize("what", ["save", "validate"])
def test_time_that_has_passed_asks_for_it_on_all_ranks(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with SignalHandler(**{f"{what}_every": 10.0}) as outside:
        asked = []
        for now in (1.0, 9.9, 10.1, 11.0, 20.0, 20.2):  # noqa: B007
            asked.append(outside.poll(ALONE))
    assert [request == SignalRequest(**{what: True}) for request in asked] == [False, False, True, False, False, True]


def test_what_fails_in_the_background_is_raised_after_the_next_update() -> None:
    background, may_go_on = BackgroundTask(), threading.Event()

    def fail() -> None:
        may_go_on.wait(10)
        raise CheckpointError("no room")

    background.start(fail)
    with SignalHandler(checks=[background.check]) as outside:
        assert outside.poll(ALONE) == SignalRequest()
        may_go_on.set()
        with pytest.raises(CheckpointError, match="no room"):
            while True:
                outside.poll(ALONE)
    background.wait()


def test_one_piece_of_work_at_a_time() -> None:
    background, running, most = BackgroundTask(), [0], [0]

    def work() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        running[0] -= 1

    for _ in range(4):
        background.start(work)
    background.wait()
    assert (running, most) == ([0], [1])
