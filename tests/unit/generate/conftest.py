"""Fixtures of the tests of generation."""

from __future__ import annotations

import pytest

from onmt_llm.generate.torch import lookup


@pytest.fixture
def many_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt lookup guesses where two tokens repeat, so that tiny random models are guessed often."""
    monkeypatch.setattr(lookup, "_NGRAM", 2)
    monkeypatch.setattr(lookup, "_SIZES", {2: 4, 6: 16})
