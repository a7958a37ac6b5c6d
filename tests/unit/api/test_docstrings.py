"""Every public name has an example in its docstring, and the examples run."""

from __future__ import annotations

import doctest

import pytest

import onmt_llm

NAMES = [name for name in onmt_llm.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_its_examples_run(name: str, engine: onmt_llm.TextEngine, capsys: pytest.CaptureFixture[str]) -> None:
    globs = {"onmt_llm": onmt_llm, "engine": engine}
    tests = doctest.DocTestFinder().find(getattr(onmt_llm, name), name, globs=globs)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert sum(runner.run(test).attempted for test in tests), f"{name} has no example"
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(onmt_llm).failed == 0


def test_every_public_method_of_an_engine_has_an_example() -> None:
    inherited = {"score", "logits", "codec"}  # described by the protocol
    for name in vars(onmt_llm.TextEngine).keys() - inherited:
        assert name.startswith("_") or ">>>" in (getattr(onmt_llm.TextEngine, name).__doc__ or ""), name
