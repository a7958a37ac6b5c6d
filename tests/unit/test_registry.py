"""Registries and plugins: names, nearest names, and plugins that cannot be loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onmt_llm.errors import ConfigError
from onmt_llm.registry import Registry, load_plugins, module_name, nearest


@pytest.fixture
def shapes() -> Registry[int]:
    registry: Registry[int] = Registry("shape")
    registry.register("square")(4)
    registry.register("circle")(0)
    return registry


def test_entries_are_found_by_name(shapes: Registry[int]) -> None:
    assert shapes.get("square") == 4 and "circle" in shapes and "line" not in shapes
    assert list(shapes) == shapes.names() == ["circle", "square"]


def test_an_unknown_name_lists_all_and_suggests_the_nearest(shapes: Registry[int]) -> None:
    with pytest.raises(ConfigError, match="'sqare' is not a known shape; known are: circle, square") as error:
        shapes.get("sqare")
    assert error.value.hint == "did you mean 'square'?"
    with pytest.raises(ConfigError) as error:
        shapes.get("tesseract")
    assert error.value.hint is None


def test_a_name_is_registered_once(shapes: Registry[int]) -> None:
    with pytest.raises(AssertionError, match="shape 'circle' is registered twice"):
        shapes.register("circle")(1)


def test_the_nearest_name_is_similar_or_none() -> None:
    assert nearest("learnig_rate", ["learning_rate", "dropout"]) == "learning_rate"
    assert nearest("zzz", ["learning_rate", "dropout"]) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("import no_such_package_anywhere", "cannot be loaded: ModuleNotFoundError"),
        ("def f(:", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_plugin_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugin = tmp_path / "failing_plugin.py"
    plugin.write_text(source)
    with pytest.raises(ConfigError, match=message) as error:
        load_plugins([str(plugin)])
    assert str(plugin) in error.value.message


def test_a_plugin_is_imported_once_and_must_not_shadow_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugin = tmp_path / "counting_plugin.py"
    plugin.write_text(
        "import sys\nsys.modules['json'].loads_of_plugin = getattr(sys.modules['json'], 'loads_of_plugin', 0) + 1\n"
    )
    load_plugins([str(plugin), str(plugin)])
    load_plugins([module_name(str(plugin))])
    import json

    assert json.__dict__.pop("loads_of_plugin") == 1
    sys.modules.pop("counting_plugin")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match="there is another module 'json'") as error:
        load_plugins([str(tmp_path / "json.py")])
    assert error.value.hint == "rename the file"
