"""The command `release_model`."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tiny
from onmt_llm.cli.release import main
from onmt_llm.errors import CheckpointError, ConfigError

TEXT = "a b c d e f g h " * 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    vocab = ["<unk>", "<s>", "</s>", *"abcdefghi"]
    return tiny.write_checkpoint(tmp_path / "model", tiny.config(vocab_size=12, position="rotary"), vocab, scale=0.1)


@pytest.mark.parametrize(
    "flags",
    [
        ["-model", "{m}", "-output", "{o}", "-quantization", "int8"],
        ["--model", "{m}", "--output={o}"],
        ["-m", "{m}", "-o", "{o}", "-q", "int8"],
    ],
)
def test_the_command(model: Path, tmp_path: Path, flags: list[str]) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT)
    filled = [flag.format(m=model, o=tmp_path / "out") for flag in flags]
    assert main([*filled, "--verify_text", str(text)]) == 0
    assert json.loads((tmp_path / "out" / "release_report.json").read_text())["verdict"] == "pass"
    assert main(filled) == CheckpointError.exit_code
    assert main([*filled, "--verify", "off", "--force"]) == 0


def test_the_command_explains_itself_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys; from onmt_llm.cli.release import main; main(['-m', 'x']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
    assert main(["-output", "x"]) == ConfigError.exit_code
    assert "'model' must be given" in capsys.readouterr().err
    assert main(["-output", "y", "-quant", "int8"]) == ConfigError.exit_code
    assert "'-quant' is not an option" in capsys.readouterr().err


def random_lines(path: Path, *, seed: int, lines: int) -> str:
    chance = random.Random(seed)
    path.write_text("".join(" ".join(chance.choices("abcdefghi", k=9)) + "\n" for _ in range(lines)))
    return str(path)


@pytest.mark.parametrize("task", ["lm", "seq2seq"])
def test_a_release_is_calibrated_on_the_corpora_of_the_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    corpus = {"path_src": random_lines(tmp_path / "train.src", seed=1, lines=200)}
    valid = {"path_src": random_lines(tmp_path / "valid.src", seed=3, lines=9)}
    if task == "seq2seq":
        config = tiny.seq2seq(vocab_size=12, position="rotary")
        model = tiny.write_checkpoint(tmp_path / "s", config, ["<unk>", "<s>", "</s>", *"abcdefghi"], scale=0.3)
        corpus["path_tgt"] = random_lines(tmp_path / "train.tgt", seed=2, lines=200)
        valid["path_tgt"] = random_lines(tmp_path / "valid.tgt", seed=4, lines=9)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"data": {"c": corpus, "valid": valid}, "train_steps": 5, "epochs": 7}))
    flags = ["-model", str(model), "-quantization", "int8", "-verify", "off", "-config", str(file)]
    assert main([*flags, "-quality", "calibrated", "-output", str(tmp_path / "calibrated")]) == 0
    (found,) = re.findall(r"Calibrated on ([\d,]+) tokens", capsys.readouterr().err)
    assert 200 * 9 <= int(found.replace(",", "")) <= 200 * 2 * 11
    assert main([*flags, "-output", str(tmp_path / "rotated")]) == 0
    files = [(tmp_path / name / "model.bin").read_bytes() for name in ("calibrated", "rotated")]
    assert len(files[0]) == len(files[1]) and files[0] != files[1]


def test_calibration_without_a_text_needs_the_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-model", str(model), "-output", str(tmp_path / "out"), "-quantization", "int8", "-quality", "calibrated"]
    assert main(flags) == ConfigError.exit_code
    assert "--config FILE of the run that trained the model" in capsys.readouterr().err


def test_plain_stands_beside_what_was_chosen(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = random_lines(tmp_path / "text", seed=3, lines=30)
    flags = ["-model", str(model), "-quantization", "int8", "-verify_text", text, "-compare_plain"]
    assert main([*flags, "-output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "release_report.json").read_text())
    assert main([*flags[:-1], "-quality", "plain", "-output", str(tmp_path / "plain")]) == 0
    plain = json.loads((tmp_path / "plain" / "release_report.json").read_text())
    assert report["plain_figures"].items() <= plain["figures"].items() != report["figures"].items()
    assert f"(plain: {plain['figures']['mean_kl']:.6g})" in printed
    assert main([*flags, "-verify", "off", "-output", str(tmp_path / "other")]) == ConfigError.exit_code
    assert {path.name for path in tmp_path.iterdir()} == {"model", "text", "out", "plain"}
