"""API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from onmt_llm.errors import ConfigError

_SHORTEST = 8


class ApiKeys:
    """A set of keys.

    Args:
        keys: The keys; none = `accepts` accepts nothing.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # digests, so that a comparison takes the same time for keys of any length
        self._digests = [_digest(key) for key in dict.fromkeys(keys)]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: str) -> bool:
        """Whether it is one of the keys. The time does not depend on which characters are right."""
        digest = _digest(key)
        return any([hmac.compare_digest(digest, each) for each in self._digests])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def bearer_key(authorization: str) -> str:
    """The key in a header `Authorization: Bearer KEY`; "" = there is none."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def read_keys(option: str, path: str | None, variable: str) -> ApiKeys:
    """The keys in a file (one per line; `#` starts a comment) and in an environment variable (separated by commas).

    Raises:
        ConfigError: The file cannot be read or has no keys, or a key can be guessed, since it is short, or cannot be
            sent in a header.
    """
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"'{option}' must be a file of keys, but {path} cannot be read: {reason}.") from error
        listed = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not listed:
            raise ConfigError(f"'{option}' must have a key, but {path} has none.", hint="write one key per line")
        keys += listed
    if any(len(key) < _SHORTEST or not key.isascii() for key in keys):
        raise ConfigError(
            f"A key must have at least {_SHORTEST} characters, all of them ASCII, but one of '{option}' or {variable} "
            "has fewer or others.",
            hint="python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return ApiKeys(keys)
