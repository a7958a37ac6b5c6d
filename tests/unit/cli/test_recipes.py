"""`onmt_llm recipes` writes the recipes where their paths are right, and never over something."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.cli.main import main

RECIPES = Path(__file__).parents[3] / "recipes"


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("directory", [[], ["new/folder"]])
def test_all_recipes_are_written(
    directory: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", *directory]) == 0
    written = Path(*directory, "recipes")
    assert files(written) == files(RECIPES)
    assert str(written / "quickstart/README.md") in capsys.readouterr().out
    assert main(["recipes", *directory]) == 4
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["a", "b"], ["-output", "a"], ["-output=a"]])
def test_it_takes_one_directory(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *words]) == 2
    assert "onmt_llm recipes [DIRECTORY]" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--help"]) == main(["help", "recipes"]) == 0
    first, second = capsys.readouterr().out.split("usage: ")[1:]
    assert first == second
