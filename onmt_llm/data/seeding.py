"""Seeds that are derived from their purpose only, not from random numbers drawn before."""

from __future__ import annotations

import random


def derived_seed(*parts: int | str) -> int:
    """A number that depends on all parts and on nothing else (not on the process' hash seed)."""
    return random.Random(":".join(map(str, parts))).getrandbits(31)
