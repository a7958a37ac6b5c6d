"""The command `release_model`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
