"""The worker pool: errors in order, workers that die, messages, and no process left behind."""

from __future__ import annotations

import logging
import os
import signal
import time
from itertools import islice

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.workers.pool import WorkerProcess, ahead
from onmt_llm.errors import DataError

PROCESSES = {"num_workers": 2, "bucket_size": 8}


@pytest.fixture
def started(monkeypatch) -> list[WorkerProcess]:
    """Workers, as they are started."""
    workers: list[WorkerProcess] = []
    start = WorkerProcess.__init__

    def remember(self, *args):
        start(self, *args)
        workers.append(self)

    monkeypatch.setattr(WorkerProcess, "__init__", remember)
    return workers


def test_an_error_comes_at_its_place_with_its_line(make_pipeline, write, words):
    corpora = {"x": CorpusConfig(path_src=write("x", words(40, 1).encode() + b"\xff\n" + words(40, 2).encode()))}
    found = []
    for batching in (PROCESSES, {**PROCESSES, "num_workers": 0}):
        batches = []
        with pytest.raises(DataError, match=r"x:41 holds the byte 0xff") as caught:
            for batch in make_pipeline(corpora, batching=batching):
                batches.append(batch.tgt_BT.tolist())
        found.append((batches, str(caught.value)))
    assert found[0] == found[1] and len(found[0][0]) == 10


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_noticed(make_pipeline, write, words, started, signal_number):
    corpora = {"x": CorpusConfig(path_src=write("x", words(400, 1)))}
    stream = iter(make_pipeline(corpora, batching={**PROCESSES, "prefetch_factor": 1}))
    next(stream)
    os.kill(started[1].pid, signal_number)
    with pytest.raises(DataError, match=rf"Data worker 2 .*was killed by {signal_number.name}") as caught:
        list(islice(stream, 500))
    assert caught.value.hint and ("memory" in caught.value.hint) == (signal_number == signal.SIGKILL)
    assert all(_gone(worker.pid) for worker in started)


def test_workers_end_with_the_iterator_and_ignore_ctrl_c(make_pipeline, write, words, started):
    corpora = {"x": CorpusConfig(path_src=write("x", words(400, 1)))}
    stream = iter(make_pipeline(corpora, batching=PROCESSES))
    next(stream)
    for worker in started:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(islice(stream, 150))) == 150
    del stream
    assert len(started) == 2 and all(_gone(worker.pid) for worker in started)


def test_workers_speak_through_the_trainer(make_pipeline, write, capfd, caplog):
    corpora = {"x": CorpusConfig(path_src=write("x", "a\n\nb\n"))}
    pipeline = make_pipeline(corpora, {"epochs": 1}, PROCESSES)
    with caplog.at_level(logging.INFO, logger="onmt_llm"):
        list(pipeline)
    assert "empty examples" in caplog.text and "First bucket: x: read 3, kept 2" in caplog.text
    assert capfd.readouterr().err == ""


def test_ahead_keeps_the_order_and_the_place_of_an_error():
    begun: list[int] = []

    def items():
        yield from range(5)
        raise ValueError("after five")

    stream = ahead(items(), lambda index, item: begun.append(index) or item, 2)
    assert next(stream) == 0 and begun == [0, 1, 2]
    assert [next(stream) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="after five"):
        next(stream)


def _gone(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
