"""Training curves: reading metrics, placing points, finding the best checkpoint, drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.cli.plot import main
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.eval.curves import Curve, open_runs
from onmt_llm.eval.plotting import smoothed


def train_row(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "split": "train", "xent": 5.0 - step / 10, "tokens": 100, "elapsed": 36.0 * step, **figures}


ROWS = [
    *(train_row(step) for step in (10, 20, 30)),
    {"step": 15, "split": "valid", "ppl": 9.0, "xent": 2.2, "BLEU": 10.0, "patience": 2, "valid_a/ppl": 8.0},
    {"step": 20, "split": "valid", "ppl": 7.0, "xent": 1.9, "BLEU": 30.0},
    {"step": 30, "split": "valid", "ppl": 8.0, "xent": 2.1, "BLEU": None},
]


def write_run(folder: Path, rows: list[dict[str, Any]] = ROWS, name: str = "model") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_is_found_by_its_prefix_its_folder_or_its_file(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a")
    for place in (file, tmp_path / "a", tmp_path / "a" / "model"):
        (run,) = open_runs([str(place)])
        assert run.name == "model" and len(run.rows["train"]) == 3
    write_run(tmp_path / "b")
    assert [run.name for run in open_runs([str(tmp_path / "a"), str(tmp_path / "b")])] == ["a/model", "b/model"]
    with pytest.raises(ConfigError, match="there is none at"):
        open_runs([str(tmp_path / "nowhere")])
    write_run(tmp_path / "b", name="second")
    with pytest.raises(ConfigError, match="holds 2"):
        open_runs([str(tmp_path / "b")])


def test_validations_lie_between_the_reports_of_training(tmp_path: Path) -> None:
    (run,) = open_runs([str(write_run(tmp_path))])
    assert run.curve("train", "xent", "tokens") == Curve([100.0, 200.0, 300.0], [4.0, 3.0, 2.0])
    assert run.curve("valid", "ppl", "tokens").x == [150.0, 200.0, 300.0]
    assert run.curve("valid", "ppl", "hours").x == pytest.approx([0.15, 0.2, 0.3])
    assert run.curve("valid", "BLEU", "steps") == Curve([15.0, 20.0], [10.0, 30.0])  # null is left out
    assert run.scores == ["BLEU"]


def test_the_best_is_one_whose_checkpoint_is_there(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    (run,) = open_runs([str(file)])
    best = run.best("ppl")
    assert best is not None and (best.step, best.value, best.saved) == (20, 7.0, False)
    for step in (15, 30):
        (tmp_path / f"model_step_{step}").mkdir()
    (run,) = open_runs([str(file)])
    best, highest = run.best("ppl"), run.best("BLEU")
    assert best is not None and (best.step, best.saved) == (30, True)
    assert highest is not None and highest.step == 15
    assert run.best("CHRF") is None


def test_a_line_cut_short_is_the_last_one_only(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    whole = file.read_text()
    file.write_text(whole + '{"step": 40, "spl')
    assert len(open_runs([str(file)])[0].rows["train"]) == 3
    file.write_text('{"step": 40, "spl\n' + whole)
    with pytest.raises(DataError, match=r"model_metrics.jsonl:1 "):
        open_runs([str(file)])


def test_smoothing_is_the_mean_of_the_last_ones() -> None:
    assert smoothed([2.0, 4.0, 9.0, 5.0], 2) == [2.0, 3.0, 6.5, 7.0]
    assert smoothed([2.0, 4.0], 1) == [2.0, 4.0]


@pytest.mark.parametrize("against", ["tokens", "hours"])
def test_rows_without_what_they_are_drawn_against_are_left_out(tmp_path: Path, against: Any) -> None:
    rows = [{"step": step, "split": "train", "xent": 1.0, "tokens": 10, "elapsed": 3600} for step in (1, 2)]
    file = tmp_path / "run_metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 3, "split": "train", "xent": 1.0}]))
    assert open_runs([str(file)])[0].positions([2], against) == [20.0 if against == "tokens" else 1.0]
    file.write_text(json.dumps({"step": 3, "split": "train", "xent": 1.0}) + "\n")
    with pytest.raises(DataError, match="must hold reports of training"):
        open_runs([str(file)])[0].positions([2], against)


def test_the_picture_names_runs_axes_and_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"  # text as text
    first, second = write_run(tmp_path, name="first"), write_run(tmp_path, name="second")
    (tmp_path / "first_results.jsonl").write_text('{"step": 30, "CHRF": 51.0}\n{"step": 20, "CHRF": 50.0}\n')
    picture = tmp_path / "new" / "curves.svg"
    assert main([str(first), str(second), "-output", str(picture), "-against", "tokens", "-log_scale", "y"]) == 0
    text = picture.read_text()
    for part in ("first   (best ppl: 7 at step 20)", "second", "trained tokens", "cross-entropy (nats / token)"):
        assert part in text, part
    for part in ("BLEU", "CHRF", "validation", "results", "best checkpoint"):
        assert f">{part}<" in text, part
    assert capsys.readouterr().out == f"{picture} written\n"
    assert main(["-runs", str(first), "-output", str(tmp_path / "x.png"), "-figures", "xent"]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_corpus_has_a_curve_of_its_own_where_it_was_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    rows = [train_row(10, **{"news/xent": 4.5}), train_row(20), train_row(30, **{"news/xent": 2.5})]
    file, picture = write_run(tmp_path, rows), tmp_path / "x.svg"
    (run,) = open_runs([str(file)])
    assert run.curve("train", "news/xent", "tokens") == Curve([100.0, 300.0], [4.5, 2.5])
    assert run.scores == []
    assert main([str(file), "-output", str(picture), "-figures", "xent", "news/xent", "-log_scale", "y"]) == 0
    assert ">news/xent<" in picture.read_text()


def test_what_cannot_be_drawn_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path))
    assert main([]) == 2
    assert main([run, "-output", "x.gif"]) == 2
    assert main([run, "-output", str(tmp_path / "x.svg"), "-figures", "speed"]) == 2
    error = capsys.readouterr().err
    assert ".png, .svg, .pdf" in error and "none has 'speed'" in error and "At least one run" in error


def test_a_file_that_is_no_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_bytes(bytes(range(256)))
    assert main([str(tmp_path / "run"), "-output", str(tmp_path / "x.png")]) == 3
    assert "run must hold metrics as JSON lines in UTF-8" in capsys.readouterr().err
