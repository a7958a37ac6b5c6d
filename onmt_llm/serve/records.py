"""The access log: a JSON line for each request, with its figures and without its texts."""

from __future__ import annotations

import json
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onmt_llm.errors import ConfigError

_GIVEN_ID = re.compile(r"[\w-]{1,64}", re.ASCII)

WriteLine = Callable[[str], None]


@dataclass
class RequestRecord:
    """What is known about a request.

    Attributes:
        id: Its number, which the header `X-Request-ID` carries in both directions.
        method, path: Of the request.
        begun: Time of `time.monotonic()` at which it came.
        facts: What its answers add: `model`, `prompt_tokens`, `answer_tokens`, `answers` (how many, by their end).
    """

    id: str
    method: str
    path: str
    begun: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, model: str, *, prompt_tokens: int, answer_tokens: int, ends: Counter[str]) -> None:
        """Add the figures of answers; a request of many texts is answered in groups."""
        before = self.facts
        self.facts = {
            "model": model,
            "prompt_tokens": before.get("prompt_tokens", 0) + prompt_tokens,
            "answer_tokens": before.get("answer_tokens", 0) + answer_tokens,
            "answers": dict(Counter(before.get("answers")) + ends),
        }

    def line(self, status: int) -> str:
        """The line of the access log."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        seconds = round(time.monotonic() - self.begun, 4)
        known = {"time": now, "id": self.id, "method": self.method, "path": self.path, "status": status}
        return json.dumps({**known, "seconds": seconds, **self.facts}, ensure_ascii=False)


current: ContextVar[RequestRecord | None] = ContextVar("record", default=None)
"""The record of the request that is being answered."""


def request_id(given: str) -> str:
    """The id that a client or a proxy gave, or a new one."""
    return given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex


def open_access_log(path: str) -> WriteLine:
    """A function that adds a line to the access log.

    Args:
        path: File to add to; "-" = standard output, "" = no log.

    Raises:
        ConfigError: The file cannot be written.
    """
    if not path:
        return lambda line: None
    if path == "-":
        return lambda line: print(line, file=sys.stdout, flush=True)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open as long as the server runs)
    except OSError as error:
        raise ConfigError(f"'access_log' must be a file that can be written, but {path}: {error.strerror}.") from error
    return lambda line: print(line, file=stream)
