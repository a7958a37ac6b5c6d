"""Seeds that depend on what they are for and on nothing else, least of all on what was drawn before."""

from __future__ import annotations

import random


def derived_seed(*parts: int | str) -> int:
    """A number that depends on all parts and on nothing else (not on the process' hash seed)."""
    return random.Random(":".join(map(str, parts))).getrandbits(31)
