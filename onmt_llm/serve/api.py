"""`Api`: the routes of one API, and the form of its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from onmt_llm.serve.errors import Refusal


@dataclass(frozen=True)
class Api:
    """One API.

    Attributes:
        prefixes: What its paths begin with; "" = all paths of no other API.
        router: Its routes.
        error_body: Puts a refusal into the JSON of its errors.
        needs_key: A request must have a key in its header, if the server has keys. An API whose clients send it in the
            body checks it itself.
    """

    prefixes: tuple[str, ...]
    router: APIRouter
    error_body: Callable[[Refusal], dict[str, Any]]
    needs_key: bool = True

    def has(self, path: str) -> bool:
        """Whether a path belongs to it."""
        return any(path == prefix or path.startswith(f"{prefix.rstrip('/')}/") for prefix in self.prefixes)
