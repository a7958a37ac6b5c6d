"""Log the epochs of corpora, but not more often than useful: small corpora may have several a second."""

from __future__ import annotations

import time

from onmt_llm.log import logger

_PAUSE = 60.0
"""Seconds between two lines."""


class EpochLog:
    """Logs where the corpora are, at most once a minute."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}
        self._told: float | None = None

    def begun(self, corpus: str, epoch: int) -> None:
        """Epoch `epoch` of a corpus has begun: say so, or keep it for the next line."""
        self._begun[corpus] = epoch
        now = time.monotonic()
        if self._told is None or now - self._told >= _PAUSE:
            self._told = now
            epochs = [f"{epoch:,} of corpus '{corpus}'" for corpus, epoch in self._begun.items()]
            logger.info("Epoch %s.", ", ".join(epochs))
            self._begun.clear()
