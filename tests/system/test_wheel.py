"""The wheel in a fresh environment, away from the repository: the commands start, and the shipped quickstart trains."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from onmt_llm.commands import COMMANDS

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "demo", "runs", "__pycache__", "*.egg-info")
pytestmark = pytest.mark.slow


def call(folder: Path, *command: str | Path) -> str:
    """Run a program in a folder, without the repository on its path; its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(what: str, source: Path, output: Path) -> Path:
    """Build the `sdist` or the `wheel` of a source tree, as `python -m build` does, but without its network."""
    code = f"from setuptools import build_meta; build_meta.build_{what}({str(output)!r})"
    call(source, sys.executable, "-c", code)
    (built,) = [path for path in output.iterdir() if what == "sdist" or path.suffix == ".whl"]
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_SOURCE)
    (folder / "dist").mkdir()
    with tarfile.open(build("sdist", folder / "checkout", folder / "dist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return build("wheel", source, folder / "dist")


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which the wheel is installed; it shares the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    call(folder, sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    call(folder, *pip, wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched after the environment's own packages, and its own .pth files are not read, so
    # the editable install of the repository is invisible.
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return folder / "bin"


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"onmt_llm", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert [name for name in names if re.search(r"(^|/)(tests?|test_\w+|conftest|shared|\.\w+)([/.]|$)", name)] == []


def test_every_command_starts(programs: Path, tmp_path: Path) -> None:
    listed = call(tmp_path, programs / "onmt_llm")
    assert listed == call(tmp_path, programs / "python", "-m", "onmt_llm")
    for name, command in COMMANDS.items():
        assert command.usage.split()[0] in call(tmp_path, programs / name, "--help")
        assert re.search(rf"^  {command.module}  ", listed, flags=re.MULTILINE) or command.module == "translate"
    place = call(tmp_path, programs / "python", "-c", "import onmt_llm; print(onmt_llm.__file__)")
    assert Path(place.strip()).is_relative_to(programs.parent)


def test_the_shipped_quickstart_trains(programs: Path, tmp_path: Path) -> None:
    call(tmp_path, programs / "onmt_llm", "recipes")
    call(tmp_path, programs / "python", "recipes/replicate_vicuna/make_toy_llama.py", "llama")
    toy = ("-model_dir", "llama/7B", "-tokenizer_model", "llama/tokenizer.model")
    call(tmp_path, programs / "onmt_llm_convert", *toy, "-output", "demo/base")
    config = tmp_path / "demo/base/config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("template: null", "template: alpaca"), encoding="utf-8"
    )
    call(tmp_path, programs / "onmt_llm_checkpoint", "seal", "-model", "demo/base")
    # The toy has a SentencePiece model, which is inserted where the list names no tokeniser.
    short = ("-transforms", "filtertoolong", "-train_steps", "3", "-valid_steps", "3", "-save_checkpoint_steps", "3")
    call(tmp_path, programs / "onmt_llm_train", "-config", "recipes/quickstart/quickstart.yaml", *short)
    adapter = ("-base_model", "demo/base", "-lora_weights", "demo/adapter_step_3")
    call(tmp_path, programs / "onmt_llm_lora", "-action", "merge", *adapter, "-output", "demo/merged")
    release = ("-model", "demo/merged", "-output", "demo/release", "-quantization", "int8")
    call(tmp_path, programs / "release_model", *release)
    questions = ("-src", "recipes/quickstart/data/questions.txt", "-max_length", "4")
    for engine in ("py", "ct2"):
        translate = (programs / "onmt_llm_translate", "-config", f"recipes/quickstart/translate_{engine}.yaml")
        call(tmp_path, *translate, *questions, "-output", f"{engine}.txt")
        assert (tmp_path / f"{engine}.txt").read_text(encoding="utf-8").count("\n") == 6
