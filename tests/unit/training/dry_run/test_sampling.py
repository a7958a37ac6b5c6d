"""`-dry_run` samples as many examples as time allows, and says when that is less than a bucket."""

from __future__ import annotations

import time
from typing import Any

import pytest

from onmt_llm.data.readers.lines import LineReader
from onmt_llm.errors import DataError
from onmt_llm.training.dry_run import sampling
from onmt_llm.training.dry_run.plan import plan


@pytest.fixture
def huge(copy_task: Any) -> Any:
    """Options of a bucket that nobody would wait for."""
    for side in ("src", "tgt"):
        file = copy_task.folder / f"train.{side}"
        file.write_text(file.read_text() * 40)
    return copy_task.config(batching={"batch_size": 8, "bucket_size": 1 << 18, "num_workers": 2})


def test_a_large_bucket_is_not_filled(huge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = LineReader.read
    drawn = [0]

    def slow(self: LineReader) -> Any:
        drawn[0] += 1
        time.sleep(0.0005)
        return read(self)

    monkeypatch.setattr(LineReader, "read", slow)
    monkeypatch.setattr(sampling, "_SECONDS", 1.0)
    got = plan(huge)
    assert drawn[0] < 4000 and not got.sampled.is_whole
    assert got.sampled.batch.examples == 8 and 256 <= got.sampled.examples <= 2048
    assert f"(estimated from the first {got.sampled.examples:,} examples)" in got.report()


def test_what_is_left_of_a_bucket_is_estimated(huge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([100 << 20, 110 << 20, 50 << 20, 50 << 20])
    monkeypatch.setattr(sampling, "resident_memory", lambda: next(held))
    monkeypatch.setattr(sampling, "_SECONDS", 0.2)
    rest, other = plan(huge).sampled, plan(huge).sampled
    expected = (10 << 20) / (rest.examples - 256) * ((1 << 18) - rest.examples)
    assert rest.rest == pytest.approx(expected, rel=0.01) and other.rest == 0


@pytest.mark.parametrize(("bucket", "epochs"), [(40, 0), (600, 0), (5000, 1)])
def test_a_small_bucket_or_corpus_is_looked_at_as_the_run_will(
    copy_task: Any, bucket: int, epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    corpora = {"data": copy_task.corpora, "epochs": epochs}
    caplog.set_level("INFO", logger="onmt_llm")
    got = plan(copy_task.config(batching={"batch_size": 8, "bucket_size": bucket}, corpora=corpora))
    assert got.sampled.is_whole and got.sampled.rest == 0 and "estimated from" not in got.report()
    assert sum("First bucket" in record.message for record in caplog.records) == 1


def test_corpora_of_which_nothing_is_left_are_one_sentence(copy_task: Any) -> None:
    (copy_task.folder / "train.src").write_text("\n" * 600)
    corpora = {"data": copy_task.corpora, "epochs": 1}
    with pytest.raises(DataError, match="must yield at least one"):
        plan(copy_task.config(corpora=corpora))


def test_what_takes_long_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sampling, "_HEARTBEAT_S", 0.01)
    caplog.set_level("INFO", logger="onmt_llm")
    with sampling.heartbeat("Looking"):
        while len(caplog.records) < 2:
            time.sleep(0.01)
    assert all(record.message.startswith("Looking: 0 s") for record in caplog.records)
