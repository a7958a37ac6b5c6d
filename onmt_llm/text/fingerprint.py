"""Fingerprints: hashes that tell whether two tokenisers, or two templates, are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(kind: str, content: bytes | None, options: Any = None) -> str:
    """A hash of a kind, the content of its model file, and its options (plain data)."""
    digest = hashlib.sha256(json.dumps([kind, options], sort_keys=True, default=str).encode())
    digest.update(content or b"")
    return digest.hexdigest()
