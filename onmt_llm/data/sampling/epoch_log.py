"""`EpochLog`: log the epochs of corpora at a limited rate; small corpora may have several per second."""

from __future__ import annotations

import time

from onmt_llm.log import logger

_PAUSE = 60.0
"""Seconds between two lines."""


class EpochLog:
    """Logs the epoch of each corpus, at most once a minute."""

    def __init__(self) -> None:
        self._pending: dict[str, int] = {}
        self._last_logged: float | None = None

    def begun(self, corpus: str, epoch: int) -> None:
        """Log that an epoch of a corpus has begun, now or with the next line."""
        self._pending[corpus] = epoch
        now = time.monotonic()
        if self._last_logged is None or now - self._last_logged >= _PAUSE:
            self._last_logged = now
            epochs = [f"{epoch:,} of corpus '{corpus}'" for corpus, epoch in self._pending.items()]
            logger.info("Epoch %s.", ", ".join(epochs))
            self._pending.clear()
