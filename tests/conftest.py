"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onmt_llm import log


@pytest.fixture(autouse=True)
def _log_as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands that run inside a test set the log up for a process; the next test must not see that."""
    state = (list(log.logger.handlers), log.logger.level, log.logger.propagate)
    monkeypatch.setattr(log, "_said", set())
    yield
    log.logger.handlers[:], log.logger.level, log.logger.propagate = state
