"""Totals, the progress line, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest

from onmt_llm.errors import DataError
from onmt_llm.training.metrics.reporter import MetricSources, Reporter, duration
from onmt_llm.training.metrics.sinks import OpenSink, Sink, open_jsonl, open_tensorboard
from onmt_llm.training.metrics.totals import Totals, ValidationResult


def test_figures_are_weighted_by_tokens() -> None:
    totals = Totals(nll=2.0, correct=1, tokens=1) + Totals(nll=4.0, correct=1, tokens=5)
    assert totals.xent == 1.0
    assert totals.ppl == pytest.approx(math.e)
    assert totals.accuracy == pytest.approx(100 / 3)
    assert Totals(nll=1e6, tokens=1).ppl == math.inf


def test_durations_are_short() -> None:
    assert [duration(s) for s in (4.9, 65, 3600 * 3 + 7 * 60)] == ["4s", "1m05s", "3h07m"]


def report(path: Path | None, *, start: int = 0, progress: str = "line", tensorboard: Path | None = None) -> Reporter:
    return Reporter(
        start_step=start,
        train_steps=4,
        report_every=2,
        progress=progress,
        sinks=sinks(path, tensorboard, start),
    )


def sinks(path: Path | None, tensorboard: Path | None, start: int = 0) -> dict[str, OpenSink]:
    opened: dict[str, OpenSink] = {}
    if path is not None:
        opened["metrics_file"] = partial(open_jsonl, path, start)
    if tensorboard is not None:
        opened["tensorboard"] = lambda place: open_tensorboard(Path(), start, str(tensorboard))
    return opened


def feed(reporter: Reporter, steps: range) -> None:
    with reporter:
        for step in steps:
            totals = Totals(loss=2.5, nll=2.0, correct=1, tokens=2, examples=3, positions=6)
            reporter.update(step, totals, rate=0.01, grad_norm=1.5)


def test_a_line_every_so_often(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    with caplog.at_level("INFO"):
        feed(report(None), range(1, 5))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("Step 2/4; acc: 50.00; ppl: 2.718; xent: 1.0000; lr: 0.01; sents: 6; ")
    assert "tok/s" in lines[0] and "ETA" in lines[0]


def test_a_run_that_ends_early_reports_its_last_updates(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reporter = report(path, progress="none")
    reporter.finish(0)
    for step in (1, 2, 3):
        reporter.update(step, Totals(nll=2.0, tokens=2, examples=3, batches=1), rate=0.01, grad_norm=1.5)
    reporter.finish(3)
    reporter.finish(3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["examples"], row["lr"]) for row in rows] == [(2, 6, 0.01), (3, 3, 0.01)]


def test_a_file_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for content in (b"my notes\n", b'{"step": 1}\nnotes\n{"step": 3}\n', b"\xff\xfe", b"[1, 2]\n{\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"metrics\.jsonl"):
            open_jsonl(path, 0)
        assert path.read_bytes() == content
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n\0\0\0')  # after a loss of power
    (tmp_path / "link").symlink_to(path)
    open_jsonl(tmp_path / "link", 1).close(False)
    assert path.read_text() == '{"step": 1}\n' and (tmp_path / "link").is_symlink()


def test_rows_go_to_the_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run/metrics.jsonl"
    sink = open_jsonl(path, 0)
    sink.write("valid", 1, {"ppl": 2.0})
    shutil.rmtree(path.parent)
    sink.write("valid", 2, {"ppl": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    path.with_name("new").write_text("")
    path.with_name("new").replace(path)
    sink.write("valid", 3, {"ppl": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [3]
    sink.close(False)
    null = open_jsonl(Path("/dev/null"), 0)
    null.write("valid", 1, {"ppl": 2.0})
    null.close(False)


def test_rows_after_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "run" / "m.jsonl"
    feed(report(path, progress="none"), range(1, 5))
    with open(path, "a") as file:
        file.write('{"step": 5, "split')  # truncated by a crash
    feed(report(path, start=2, progress="none"), range(3, 5))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[1]["loss"] == 1.25 and rows[1]["xent"] == 1.0 and rows[1]["examples"] == 6


def test_a_bar_needs_a_terminal_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(report(None, progress="auto"), range(1, 5))
    assert "4/4" not in capsys.readouterr().err
    feed(report(None, progress="bar"), range(1, 5))
    assert "4/4" in capsys.readouterr().err


def test_tensorboard_tags(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reporter = report(None, progress="none", tensorboard=tmp_path)
    feed(reporter, range(1, 5))
    reporter.validation(4, ValidationResult(Totals(nll=1.0, tokens=1), {"BLEU": 12.5}), patience=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "progress/xent",
        "progress/ppl",
        "progress/accuracy",
        "progress/lr",
        "valid/ppl",
        "valid/accuracy",
        "valid/BLEU",
    }
    assert [event.step for event in events.Scalars("progress/lr")] == [2, 4]


def test_a_failing_log_never_stops_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)

    def full_disk(split: str, step: int, figures: dict[str, float]) -> None:
        raise OSError("No space left on device")

    def away(place: str) -> Sink:
        raise ConnectionError("nobody answers")

    path = tmp_path / "m.jsonl"
    opened = {"tensorboard": lambda place: Sink(full_disk), "mlflow": away, **sinks(path, None)}
    feed(Reporter(start_step=0, train_steps=4, report_every=2, progress="none", sinks=opened), range(1, 5))
    assert "not written by mlflow: nobody answers" in caplog.text
    assert caplog.text.count("no longer written by tensorboard: No space left on device") == 1
    assert len(path.read_text().splitlines()) == 2


def test_what_became_of_the_data_is_in_every_row_and_in_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    counted = iter([{"data/web/kept": 8.0}, {"data/web/kept": 16.0, "data/web/dropped/too_long": 1.0}])
    path, folder = tmp_path / "m.jsonl", tmp_path / "tb"
    reporter = Reporter(
        start_step=0,
        train_steps=4,
        report_every=2,
        progress="none",
        sinks=sinks(path, folder),
        sources=MetricSources(data=lambda: next(counted)),
    )
    feed(reporter, range(1, 5))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["data/web/kept"] for row in rows] == [8, 16] and rows[1]["data/web/dropped/too_long"] == 1
    events = accumulator.EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("data/web/kept")] == [8, 16]
