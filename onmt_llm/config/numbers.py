"""Bounded number types for options: `steps: Count = 100`.

Do not narrow such a type with another `Field(ge=...)`: of two bounds on the same side, pydantic silently applies that
of the type. For other bounds, write the field's own type: `Annotated[int, Field(ge=2, le=8)]`.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

INT32 = 2**31 - 1
INT64 = 2**63 - 1

Count = Annotated[int, Field(ge=1, le=INT32)]
"""A number of examples, tokens, bytes or steps."""
CountOrZero = Annotated[int, Field(ge=0, le=INT32)]
"""A count where 0 has a special meaning: none, off, all."""
CountOrAll = Annotated[int, Field(ge=-1, le=INT32)]
"""A count where -1 has a special meaning too."""
Length = Annotated[int, Field(ge=1, le=10**7)]
"""Length of one text, in tokens or words."""
LengthOrZero = Annotated[int, Field(ge=0, le=10**7)]
"""A length where 0 has a special meaning."""
BeamSize = Annotated[int, Field(ge=1, le=1024)]
"""Hypotheses of a beam search."""
FileSize = Annotated[int, Field(ge=0, le=INT64)]
"""Bytes of a file."""
Seed = Annotated[int, Field(ge=-1, le=INT64)]
"""Random seed; -1 = a new one each time."""
BatchSize = Annotated[int, Field(ge=1, le=10**7)]
"""Examples or tokens in memory at the same time."""
Workers = Annotated[int, Field(ge=1, le=256)]
"""Processes or threads of one machine."""
WorkersOrZero = Annotated[int, Field(ge=0, le=256)]
"""Processes or threads, where 0 has a special meaning."""

LayerCount = Annotated[int, Field(ge=0, le=1024)]
"""Number of blocks of a model; 0 = none."""
LayerIndex = Annotated[int, Field(ge=-1024, le=1024)]
"""Index of a block, from 0; negative = counted from the last, -1."""
Heads = Annotated[int, Field(ge=1, le=2**14)]
"""Number of attention heads."""
HeadsOrAll = Annotated[int, Field(ge=0, le=2**14)]
"""Number of attention heads, from the first; 0 = all."""
Width = Annotated[int, Field(ge=1, le=2**20)]
"""A dimension of a weight matrix: the width of a layer, the rank of an adapter."""
WidthOrZero = Annotated[int, Field(ge=0, le=2**20)]
"""A dimension where 0 has a special meaning."""
VocabularySize = Annotated[int, Field(ge=0, le=10**7)]
"""Number of tokens in a vocabulary; 0 = not limited."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A fraction of a whole, or a probability."""
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
"""A fraction that must be below 1: dropout, the decay of a running mean."""
Positive = Annotated[float, Field(gt=0, le=1e9)]
"""A positive rate, weight or factor."""
PositiveOrZero = Annotated[float, Field(ge=0, le=1e9)]
"""A rate, weight or factor, where 0 has a special meaning."""
Real = Annotated[float, Field(ge=-1e9, le=1e9)]
"""Any number, of either sign."""
Score = Annotated[float, Field(ge=-1e300, le=1e300)]
"""The result of a metric: any finite number."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(size: str | int) -> int:
    """Bytes in "5GB", "200MB", "1.5GiB" or a plain number.

    Raises:
        ValueError: It is none of these, or zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"must be a size such as 5GB or 200MB, but is '{size}'")
    return int(float(match[1]) * _UNITS[match[2].upper()])
