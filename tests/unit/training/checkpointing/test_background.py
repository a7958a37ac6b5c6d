"""The thread that saves: one task at a time, and its errors reach the loop."""

from __future__ import annotations

import threading
import time

import pytest

from onmt_llm.errors import CheckpointError
from onmt_llm.training.checkpointing import background
from onmt_llm.training.checkpointing.background import BackgroundTask


def test_the_caller_continues_while_the_task_runs() -> None:
    task, release, done = BackgroundTask(), threading.Event(), []
    task.start(lambda: done.append(release.wait(10)))
    task.check()
    assert not done
    release.set()
    task.wait()
    assert done == [True]


def test_tasks_run_one_after_the_other() -> None:
    task, order = BackgroundTask(), []
    for number in range(5):
        task.start(lambda number=number: (time.sleep(0.01 * (5 - number)), order.append(number)))  # type: ignore[misc]
    task.wait()
    assert order == list(range(5))


@pytest.mark.parametrize("call", ["wait", "check", "start"])
def test_an_error_is_raised_once_by_the_next_call(call: str) -> None:
    def fail() -> None:
        raise CheckpointError("no space")

    task = BackgroundTask()
    task.start(fail)
    assert task._thread is not None
    task._thread.join()
    with pytest.raises(CheckpointError, match="no space"):
        getattr(task, call)(*[lambda: None] if call == "start" else [])
    task.check()
    task.wait()


def test_waiting_for_long_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LOGGED_WAIT_S", 0.05)
    task = BackgroundTask()
    with caplog.at_level("INFO", logger="onmt_llm"):
        task.start(lambda: time.sleep(0.2))
        task.start(lambda: None)
        task.wait()
    assert "for the previous checkpoint to be written" in caplog.text
