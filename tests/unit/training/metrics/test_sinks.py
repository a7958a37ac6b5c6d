"""W&B and MLflow: what is logged, how a resumed run finds its record, and the error for a missing package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from onmt_llm.errors import UnsupportedError
from onmt_llm.training.metrics.reporter import MetricSources, Reporter
from onmt_llm.training.metrics.sinks import check_trackers, open_mlflow, open_wandb
from onmt_llm.training.metrics.totals import Totals, ValidationResult


class FakeWandb(ModuleType):
    """Takes what the real one takes, and remembers it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []

    def init(self, *, project: str, name: str, config: dict[str, Any], id: str | None, resume: str) -> Any:
        self.calls.append(("init", (project, name, config, id, resume)))
        return SimpleNamespace(
            id=id or "run1",
            define_metric=lambda name, step_metric: self.calls.append(("metric", (name, step_metric))),
            log=lambda figures: self.calls.append(("log", figures)),
            finish=lambda exit_code: self.calls.append(("finish", exit_code)),
        )


class FakeMlflow(ModuleType):
    """Takes what the real one takes, and remembers it."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.calls: list[tuple[Any, ...]] = []

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> Any:
        self.calls.append(("start", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **named: self.calls.append((name, *args, *named.values()))


def run_with(sinks: dict[str, Any], resumed: dict[str, Any] | None = None) -> dict[str, Any]:
    sources = MetricSources(corpora=["news", "talks"])
    shared: dict[str, Any] = {"start_step": 0, "train_steps": 2, "report_every": 1, "progress": "none"}
    with Reporter(**shared, sinks=sinks, resumed=resumed, sources=sources) as reporter:
        totals = Totals(loss=2.0, nll=2.0, tokens=2, by_corpus=((2.0, 2.0), (0.0, 0.0)))
        reporter.update(1, totals, rate=0.1, grad_norm=float("inf"))
        single = {"valid_a": Totals(nll=1.0, tokens=1), "valid_b": Totals(nll=3.0, tokens=1)}
        reporter.validation(1, ValidationResult(Totals(nll=4.0, tokens=2), {"BLEU": 12.5}, single))
        return reporter.state()


def test_wandb_is_told_everything_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sinks = {"wandb": lambda place: open_wandb("mine", "model", {"run": {"seed": 1}}, place)}
    state = run_with(sinks)
    assert state["wandb"] == "run1"
    assert fake.calls[0] == ("init", ("mine", "model", {"run": {"seed": 1}}, None, "allow"))
    logs = [figures for kind, figures in fake.calls if kind == "log"]
    assert logs[0]["step"] == 1 and logs[0]["progress/xent"] == 1.0 and logs[0]["progress/lr"] == 0.1
    assert logs[0]["news/xent"] == 1.0 and "talks/xent" not in logs[0]
    assert (logs[1]["valid/BLEU"], logs[1]["valid_a/xent"], logs[1]["valid_b/xent"]) == (12.5, 1.0, 3.0)
    assert fake.calls[-1] == ("finish", 0)
    run_with(sinks, resumed=state)
    assert [call[1][3] for call in fake.calls if call[0] == "init"] == [None, "run1"]


def test_mlflow_is_told_everything_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    sinks = {"mlflow": lambda place: open_mlflow("mine", "model", {"run": {"seed": 1}}, place)}
    state = run_with(sinks)
    assert fake.calls[:3] == [
        ("set_experiment", "mine"),
        ("start", None, "model"),
        ("log_dict", {"run": {"seed": 1}}, "options.json"),
    ]
    train, valid = [(call[1], call[2]) for call in fake.calls if call[0] == "log_metrics"]
    assert train[1] == 1 and train[0]["progress/xent"] == train[0]["news/xent"] == 1.0
    assert "progress/grad_norm" not in train[0]  # a server has no place for infinity
    assert valid[0]["valid/BLEU"] == 12.5 and fake.calls[-1] == ("end_run", "FINISHED")
    run_with(sinks, resumed=state)
    assert [call for call in fake.calls if call[0] == "start"][1] == ("start", "new", None)


def test_a_run_that_fails_is_told_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    sinks = {"mlflow": lambda place: open_mlflow("mine", "model", {}, place)}
    with pytest.raises(KeyboardInterrupt), Reporter(start_step=0, train_steps=2, progress="none", sinks=sinks):
        raise KeyboardInterrupt
    assert fake.calls[-1] == ("end_run", "FAILED")


def test_a_missing_tracker_is_told_before_anything_else(copy_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UnsupportedError, match="wandb: true needs the package 'wandb'"):
        copy_task.run(watching={"wandb": True})
    check_trackers(wandb=False, mlflow=False)


def test_the_real_mlflow_reads_back_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    sinks = {"mlflow": lambda place: open_mlflow("mine", "model", {"run": {"seed": 1}}, place)}
    state = run_with(sinks)
    run_with(sinks, resumed=state)
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("mine").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (state["mlflow"], "model", "FINISHED")
    assert run.data.metrics["valid/BLEU"] == 12.5 and run.data.metrics["progress/xent"] == 1.0


def test_the_real_wandb_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    state = run_with({"wandb": lambda place: open_wandb("mine", "model", {}, place)})
    assert state["wandb"] and list(tmp_path.glob(f"wandb/offline-run-*-{state['wandb']}/*.wandb"))
