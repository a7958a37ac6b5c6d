"""Help and error messages of all commands appear without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands import call

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

# runs the command lines of its argument, one after the other, in a process in which nothing is imported yet
PROBE = """
import contextlib, importlib, io, json, sys

results = []
for module, *argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(f"onmt_llm.cli.{module}").main(argv)
        except SystemExit as error:
            code = error.code
    heavy = [name for name in ("torch", "transformers", "ctranslate2", "gradio") if name in sys.modules]
    results.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy})
print(json.dumps(results))
"""


def probe(*lines: list[str]) -> list[dict[str, Any]]:
    """Exit code, output and heavy imports of each of these command lines: a module of `cli`, and arguments."""
    done = subprocess.run([sys.executable, "-c", PROBE, json.dumps(lines)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy() -> None:
    modules = ["train", "build_vocab", "translate", "convert", "lora", "checkpoint", "chat", "eval", "plot", "release"]
    for module, seen in zip(modules, probe(*([module, "--help"] for module in modules)), strict=True):
        assert seen["code"] == 0 and "usage:" in seen["out"], module
        assert not seen["heavy"], module


def test_a_mistake_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    cases = [
        ("lora_rnak: 4\n", 2, ["x.yaml:1", "did you mean 'lora_rank'"]),
        ("data: {a: {path_src: nowhere.txt}}\n", 3, ["x.yaml:1", "nowhere.txt", "data.a.path_src"]),
        ("seed: 1\n", 2, ["'data' must name at least one corpus"]),
        ("transforms: [tokenmask, bpe]\nlora_layers: [q_proj]\n", 2, ["x.yaml:1", "x.yaml:2", "src_vocab must name"]),
        ("train_from: nowhere\nplugins: [nix]\nlora_rank: 0\n", 4, ["x.yaml:1", "x.yaml:2", "x.yaml:3"]),
    ]
    lines = []
    for number, (text, _, _) in enumerate(cases):
        file = tmp_path / str(number) / "x.yaml"
        file.parent.mkdir()
        file.write_text(text)
        lines.append(["train", "-config", str(file)])
    for (text, code, parts), seen in zip(cases, probe(*lines), strict=True):
        assert seen["code"] == code and not seen["heavy"], text
        assert all(part in seen["err"] for part in parts), seen["err"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_installed(tmp_path: Path, command: str) -> None:
    assert call(tmp_path, BIN / command, "--version").startswith(command.replace("generate", "translate"))


def test_an_installed_command_starts() -> None:
    done = subprocess.run([BIN / "onmt_llm_train", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("onmt_llm_train")
