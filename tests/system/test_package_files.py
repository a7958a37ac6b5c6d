"""The files of the wheel and of the source distribution: everything that is needed, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {path for path in found if "__pycache__" not in path}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the wheel in `lib`, and the list of those of the source distribution."""
    folder = tmp_path_factory.mktemp("built")
    egg_info, build = ("egg_info", "--egg-base", str(folder)), ("build_py", "--build-lib", str(folder / "lib"))
    subprocess.run([sys.executable, "setup.py", "-q", *egg_info, *build], cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_the_recipes(built: Path) -> None:
    package = {f"onmt_llm/{name}" for name in files(ROOT / "onmt_llm")}
    recipes = {f"onmt_llm/recipes/{name}" for name in files(ROOT / "recipes")}
    assert files(built / "lib") == package | recipes
    assert (built / "lib/onmt_llm/recipes/quickstart/quickstart.yaml").stat().st_size > 0


def test_the_wheel_can_be_built_from_the_source_distribution(built: Path) -> None:
    listed = set((built / "onmt_llm.egg-info/SOURCES.txt").read_text(encoding="utf-8").splitlines())
    sources = {path for path in listed if "egg-info" not in path}
    package = {f"onmt_llm/{name}" for name in files(ROOT / "onmt_llm")}
    recipes = {f"recipes/{name}" for name in files(ROOT / "recipes")}
    top = {"LICENSE", "README.md", "CHANGELOG.md", "MANIFEST.in", "constraints.txt", "pyproject.toml", "setup.py"}
    assert sources == package | recipes | top
