"""Seeds derived from their purpose, independent of random numbers drawn earlier."""

from __future__ import annotations

import random


def derived_seed(*parts: int | str) -> int:
    """A number that depends only on the parts (not on the hash seed of the process)."""
    return random.Random(":".join(map(str, parts))).getrandbits(31)
