"""Whole corpora in worker processes: results and errors are those of one process."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.data.inspection.report import measure
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.workers.pool import WorkerProcess
from onmt_llm.errors import DataError
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

Write = Callable[[str, str | bytes], str]


@pytest.fixture
def spec(write: Write, words: Callable[[int, int], str], vocab: Vocab) -> PipelineSpec:
    """Two corpora in chunks of four records; the first has random transforms and empty lines."""
    corpora = {
        "x": CorpusConfig(path_src=write("x", words(19, 1) + "\n\n"), transforms=["tokendrop", "switchout"]),
        "y": CorpusConfig(path_src=write("y", words(6, 2))),
    }
    return make_spec(corpora, make_codec("lm", vocab), batching=BatchConfig(bucket_size=4), training=True)


def test_results_do_not_depend_on_the_number_of_processes(spec: PipelineSpec) -> None:
    one, *others = ([each.to_dict() for each in measure(spec, processes=number)] for number in (1, 2, 3))
    assert all(other == one for other in others)
    assert one[0]["read"] == 21 and one[0]["dropped"]["empty"] == 2


def test_workers_log_what_they_skip(spec: PipelineSpec, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with caplog.at_level(logging.INFO, logger="onmt_llm"):
        measure(spec, processes=2)
    assert "Corpus 'x' has empty examples" in caplog.text
    assert capfd.readouterr().err == ""


def test_a_worker_that_dies_is_reported_with_the_option_that_helps(
    spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = WorkerProcess.__init__

    def start_and_kill(worker: WorkerProcess, *args: Any) -> None:
        start(worker, *args)
        os.kill(worker.pid, signal.SIGKILL)

    monkeypatch.setattr(WorkerProcess, "__init__", start_and_kill)
    with pytest.raises(DataError, match=r"Data worker 1 .*was killed by SIGKILL") as caught:
        measure(spec, processes=2)
    assert caught.value.hint and caught.value.hint.endswith("use fewer num_threads")


def test_an_error_is_that_of_one_process(write: Write, vocab: Vocab) -> None:
    corpora = {"x": CorpusConfig(path_src=write("x", b"a\n" * 9 + b"\xff\n"))}
    spec = make_spec(corpora, make_codec("lm", vocab), DataConfig(), batching=BatchConfig(bucket_size=4))
    errors = []
    for processes in (1, 2):
        with pytest.raises(DataError, match="x:10 holds the byte 0xff") as caught:
            measure(spec, processes=processes)
        errors.append((caught.value.message, caught.value.hint))
    assert errors[0] == errors[1]
