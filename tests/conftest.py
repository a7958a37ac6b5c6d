"""What every test gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onmt_llm.log import logger


@pytest.fixture(autouse=True)
def _the_log_as_it_was() -> Iterator[None]:
    """A command under test sends the log to the stderr of that test, which the next one does not have."""
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
