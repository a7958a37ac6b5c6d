"""Commands whose first word is an action, and `onmt_llm_plot`: what they refuse, and merging and verifying shards."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from onmt_llm.cli.plot import main as plot


@pytest.mark.parametrize(
    ("command", "words", "code", "sentence"),
    [
        (
            "data",
            ["reprot"],
            2,
            "The first word must be one of report, sample, export, pack, merge, verify, but is 'reprot'",
        ),
        ("data", ["verify"], 2, "'shards' must be given, but is not"),
        ("data", ["merge", "-shards", "a"], 2, "'output' must be given, but is not"),
        ("data", ["verify", "-shards", "nowhere"], 3, "nowhere"),
        ("data", ["pack", "-output", "shards"], 2, "'output' needs the action merge"),
        ("data", ["verify", "-shards", "a", "-format", "parquet"], 2, "'format' needs the action export"),
        ("eval", ["perplexity", "-resamples", "9"], 2, "'resamples' needs the action score, but that is perplexity"),
        ("checkpoint", ["info", "-output", "new"], 2, "'output' needs the action average or consolidate or export"),
        ("eval", ["-model", "m", "-src", "s"], 4, "'src' must be a file that exists"),
        ("eval", ["bleu"], 2, "The first word must be one of perplexity, score, tasks, compare, run, but is 'bleu'"),
        ("checkpoint", ["inof"], 2, "The first word must be one of info, verify, seal"),
        ("checkpoint", ["info"], 2, "'model' must be given, but is not"),
        ("checkpoint", ["average", "-models", "nowhere", "-output", "new"], 4, "nowhere"),
        ("lora", ["-action", "export"], 2, "'lora_weights' must be given, but is not"),
        ("release", ["-model", "nowhere", "-output", "new"], 4, "nowhere"),
        ("build_vocab", [], 2, "'data' must name at least one corpus, but names none"),
        ("plot", [], 2, "At least one run must be named, but none is"),
        ("plot", ["nowhere"], 2, "there is none at nowhere"),
    ],
)
def test_what_is_refused(
    command: str,
    words: list[str],
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"onmt_llm.cli.{command}").main(words) == code
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_plots_of_unknown_formats_and_metrics_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    run = tmp_path / "run_metrics.jsonl"
    run.write_text('{"step": 1, "split": "train", "xent": 1.0}\n')
    assert plot([str(run), "-output", str(tmp_path / "x.gif")]) == 2
    assert "'output' must end in one of .png, .svg, .pdf" in capsys.readouterr().err
    assert plot([str(run), "-output", str(tmp_path / "x.png"), "-figures", "BLEU"]) == 2
    said = capsys.readouterr().err
    assert "'figures' must name metrics that a run has reported, but none has 'BLEU'" in said and "xent" in said
    assert not (tmp_path / "x.png").exists()
