"""The metric COMET, with a stand-in for the package `unbabel-comet`: its functions and files, but a toy score."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onmt_llm.cli.eval import main as evaluate

# As in unbabel-comet 2.2: a checkpoint needs hparams.yaml two levels above, and errors are bare exceptions.
STAND_IN = '''
from pathlib import Path
from types import SimpleNamespace

loaded = []

def download_model(model):
    raise KeyError(f"Model '{model}' not supported by COMET.")

def load_from_checkpoint(path):
    if not Path(path).is_file():
        raise Exception(f"Invalid checkpoint path: {path}")
    if not (Path(path).parents[1] / "hparams.yaml").is_file():
        raise Exception(f"hparams.yaml file is missing from {Path(path).parents[1]}!")
    loaded.append(path)
    return SimpleNamespace(predict=predict)

def predict(samples, batch_size=16, gpus=1):
    """The share of an answer's words that its source and its reference have."""
    scores = []
    for sample in samples:
        words = sample["mt"].split()
        known = {*sample["src"].split(), *sample["ref"].split()}
        scores.append(sum(word in known for word in words) / len(words))
    return SimpleNamespace(scores=scores, system_score=sum(scores) / len(scores))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in {
        "packages/comet/__init__.py": STAND_IN,
        "packages/unbabel_comet-2.2.7.dist-info/METADATA": "Name: unbabel-comet\nVersion: 2.2.7\n",
        "model/hparams.yaml": "class_identifier: regression_metric\n",
        "model/checkpoints/model.ckpt": "",
        "alone.ckpt": "",
        "src": "a b\nc d\n",
        "ref": "x y\nz ü\n",
        "good": "a x\nz c\n",
        "poor": "a q\nq r q c\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("comet", None)
    yield tmp_path
    sys.modules.pop("comet", None)


SCORE = ["score", "-hyp", "good", "poor", "-tgt", "ref", "-metrics", "comet"]


@pytest.mark.parametrize("model", ["model", "model/checkpoints/model.ckpt"])
def test_the_mean_of_the_models_scores(folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    import comet

    more = ["-comet_model", model, "-resamples", "50", "-output", "scores.json"]
    assert evaluate([*SCORE, "-src", "src", *more]) == 0
    good, poor = json.loads((folder / "scores.json").read_text())
    assert (good["score"], poor["score"]) == (1.0, 0.375) and poor["p_value"] < 1
    said = capsys.readouterr().out
    assert "good\tCOMET\t1.0000" in said and "by:comet-2.2.7" in said
    assert comet.loaded == [str(folder / "model/checkpoints/model.ckpt")], "it is loaded once"


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        ([], 2, "'src' must be given"),
        (["-src", "one"], 3, "'src' must have as many lines as 'tgt', 2, but has 1"),
        (["-src", "src"], 4, "Unbabel/wmt22-comet-da cannot be loaded (KeyError: \"Model 'Unbabel/wmt22-comet-da' not"),
        (
            ["-src", "src", "-comet_model", "packages"],
            4,
            "packages cannot be loaded (Exception: Invalid checkpoint path:",
        ),
        (["-src", "src", "-comet_model", "alone.ckpt"], 4, "hparams.yaml file is missing"),
    ],
)
def test_what_is_refused(
    folder: Path, argv: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "one").write_text("a b\n")
    assert evaluate([*SCORE, *argv]) == code
    assert sentence in capsys.readouterr().err
