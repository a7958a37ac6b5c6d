"""The command `release_model`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.cli.release import main
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.nn.transformer import Transformer

TEXT = "a b c d e f g h " * 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = ModelConfig(decoder_layers=1, vocab_size=12, hidden_size=16, heads=2, ffn_size=16, position="rotary")
    with CheckpointWriter(tmp_path / "model", CheckpointConfig(model=config)) as writer:
        for name, parameter in Transformer(config).named_parameters():
            writer.add(name, 0.1 * torch.randn_like(parameter))
        writer.add_text("vocab.txt", "\n".join(["<unk>", "<s>", "</s>", *"abcdefghi"]) + "\n")
    return tmp_path / "model"


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
