"""Help, error messages and plans of all commands appear without importing torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
COMMANDS = [
    "onmt_llm_train",
    "onmt_llm_build_vocab",
    "onmt_llm_translate",
    "onmt_llm_generate",
    "onmt_llm_convert",
    "onmt_llm_lora",
    "onmt_llm_checkpoint",
    "onmt_llm_eval",
    "onmt_llm_plot",
    "onmt_llm_chat",
    "onmt_llm_serve",
    "release_model",
]
HEAVY = ("torch", "transformers", "ctranslate2", "gradio")

PROBE = """
import sys
from onmt_llm.cli.{module} import main
try:
    code = main({argv!r})
except SystemExit as error:
    code = error.code
loaded = [name for name in {heavy!r} if name in sys.modules]
print("heavy:", loaded, file=sys.stderr)
sys.exit(code)
"""


def probe(module: str, *argv: str) -> subprocess.CompletedProcess[str]:
    code = PROBE.format(module=module, argv=list(argv), heavy=HEAVY)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module", ["train", "build_vocab", "translate", "convert", "lora", "checkpoint", "chat", "eval", "plot", "release"]
)
def test_help_imports_nothing_heavy(module: str) -> None:
    done = probe(module, "--help")
    assert done.returncode == 0 and "heavy: []" in done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        ("lora_rnak: 4\n", 2, ["x.yaml:1", "did you mean 'lora_rank'"]),
        ("data: {a: {path_src: nowhere.txt}}\n", 3, ["x.yaml:1", "nowhere.txt", "data.a.path_src"]),
        ("seed: 1\n", 2, ["'data' must name at least one corpus"]),
        ("transforms: [tokenmask, bpe]\nlora_layers: [q_proj]\n", 2, ["x.yaml:1", "x.yaml:2", "src_vocab must name"]),
        ("train_from: nowhere\nplugins: [nix]\nlora_rank: 0\n", 4, ["x.yaml:1", "x.yaml:2", "x.yaml:3"]),
    ],
)
def test_a_mistake_is_told_before_torch_is_there(tmp_path: Path, text: str, code: int, parts: list[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    done = probe("train", "-config", str(file))
    assert done.returncode == code and "heavy: []" in done.stderr
    assert "Traceback" not in done.stderr and all(part in done.stderr for part in parts)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_installed(command: str) -> None:
    done = subprocess.run([BIN / command, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith(command.replace("generate", "translate"))
