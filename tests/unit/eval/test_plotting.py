"""Pictures of training curves: formats, figures, and smoothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from onmt_llm.cli.plot import main as plot
from onmt_llm.errors import ConfigError
from onmt_llm.eval.curves import Run, open_runs
from onmt_llm.eval.plotting import PlotStyle, plot_runs, smoothed
from onmt_llm.generate.measurements import Measurement, read_measurements, write_measurements

pytest.importorskip("matplotlib")


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    files = []
    for name in ("one", "two"):
        file = tmp_path / f"{name}_metrics.jsonl"
        rows = [
            {"split": split, "step": step, "tokens": 10 * step, "seconds": step, "xent": 3 / step, "ppl": 20 / step}
            for step in range(1, 6)
            for split in ("train", "valid")
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(str(file))
    return open_runs(files)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_ending_says_the_format(runs: list[Run], tmp_path: Path, suffix: str, magic: bytes) -> None:
    output = tmp_path / f"curves{suffix}"
    plot_runs(runs, output, style=PlotStyle(title="Two runs"))
    assert output.read_bytes().startswith(magic)


def test_names_of_runs_and_figures_are_in_the_picture(runs: list[Run], tmp_path: Path) -> None:
    output = tmp_path / "curves.svg"
    style = PlotStyle(log_scale=["x", "y"], smooth=3, title="Two runs")
    plot_runs(runs, output, metrics=["xent", "ppl"], style=style)
    text = output.read_text()
    assert all(word in text for word in ("Two runs", "perplexity", "cross-entropy"))


def test_another_ending_is_refused(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in one of .png, .svg, .pdf, but is .*curves.gif"):
        plot_runs(runs, tmp_path / "curves.gif")


def test_a_figure_that_no_run_reported_is_refused_with_those_there_are(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none has 'bleu'") as error:
        plot_runs(runs, tmp_path / "curves.png", metrics=["bleu"])
    assert "'xent'" in str(error.value.hint) and not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("window", "expected"), [(1, [1, 3, 5, 7]), (2, [1, 2, 4, 6]), (3, [1, 2, 3, 5]), (9, [1, 2, 3, 4])]
)
def test_a_point_is_the_mean_of_the_reports_up_to_it(window: int, expected: list[float]) -> None:
    assert smoothed([1, 3, 5, 7], window) == expected


def test_results_of_checkpoints_mark_the_best_one_by_each_average(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"a": [9, 1, 3, 2], "b": [9, 20, 5, 7], "c": [9, 9, 6, 4]}
    rows = [
        Measurement(step, corpus, ppl, 1.0, 10, "0" * 16)
        for corpus, line in figures.items()
        for step, ppl in enumerate(line)
    ]
    rows += [Measurement(9, "a", 0.5, 1.0, 10, "0" * 16)]  # the others are not measured yet
    write_measurements(tmp_path / "results.csv", rows)
    assert read_measurements(tmp_path / "results.csv") == sorted(rows, key=lambda row: (row.step, row.corpus))
    diverged = [Measurement(5, corpus, math.nan, math.nan, 10, "0" * 16) for corpus in figures]
    write_measurements(tmp_path / "results.csv", [*rows, *diverged])
    assert plot([str(tmp_path / "results.csv"), "-output", str(tmp_path / "plot.svg")]) == 0
    said = capsys.readouterr().out
    assert "best mean of all corpora: ppl 4.3333 at step 3" in said
    assert "best median of all corpora: ppl 4.0000 at step 3" in said
    text = (tmp_path / "plot.svg").read_text()
    assert all(word in text for word in ("results.csv", "mean of all corpora", "median of all corpora", "perplexity"))
    assert plot([str(tmp_path / "missing.csv"), "-output", str(tmp_path / "plot.png")]) == 3
    assert "but there is no such file" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("step,ppl\n")
    assert plot([str(tmp_path / "other.csv"), "-output", str(tmp_path / "plot.png")]) == 3
    assert "must be a CSV file with the columns step, corpus, ppl" in capsys.readouterr().err
    assert plot([str(tmp_path / "results.csv"), "run", "-output", str(tmp_path / "plot.png")]) == 2
