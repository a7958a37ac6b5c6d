"""Checks of output paths before a command starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onmt_llm.output_checks import place_problem, replaced_input


@pytest.mark.parametrize("path", ["x\0y", "a" * 300, f"folder/{'é' * 128}/x", "file/x", "file/x/y", ""])
@pytest.mark.parametrize("folder", [False, True])
def test_places_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, folder: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if path or not folder:
        assert place_problem(path, folder=folder)
    assert place_problem("new/folder/x", folder=folder) is None
    assert bool(place_problem(".", folder=folder)) != folder
    assert bool(place_problem("/", folder=folder)) != folder


def test_inputs_are_recognised_through_links(tmp_path: Path) -> None:
    model = tmp_path / "base/model"
    model.mkdir(parents=True)
    (model / "config.yaml").write_text("")
    text = tmp_path / "text"
    text.write_text("")
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "model link").symlink_to(model)
    os.link(text, tmp_path / "hard")
    inputs = [text, model, tmp_path / "missing"]
    for output in ("text", "link", "hard", "base/../text", "model link/config.yaml", "base/model/new.txt"):
        assert replaced_input(tmp_path / output, inputs) in (text, model), output
    for output in ("base/model", "model link", "base"):
        assert replaced_input(tmp_path / output, inputs, folder=True) == model, output
    for output in ("new", "base/new.txt"):
        assert replaced_input(tmp_path / output, inputs) is None
    for output in ("new", "base/other", "base/model/int8"):
        assert replaced_input(tmp_path / output, inputs, folder=True) is None
