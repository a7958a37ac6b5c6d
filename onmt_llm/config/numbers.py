"""Kinds of numbers, each with its bounds: what an option that is a number is declared as.

`steps: Count = 100`. A field must not narrow its kind by `Field(ge=...)`: of two bounds of one side pydantic applies
the kind's, and says nothing. A bound that no kind has stands in the field's own type: `Annotated[int, Field(ge=2,
le=8)]`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

INT32 = 2**31 - 1
INT64 = 2**63 - 1

Count = Annotated[int, Field(ge=1, le=INT32)]
"""So many examples, tokens or bytes, or every so many updates."""
CountOrZero = Annotated[int, Field(ge=0, le=INT32)]
"""The same, where 0 means something: none, off, all."""
CountOrAll = Annotated[int, Field(ge=-1, le=INT32)]
"""The same, where -1 means something too."""
Length = Annotated[int, Field(ge=1, le=10**7)]
"""Tokens or words of one text."""
LengthOrZero = Annotated[int, Field(ge=0, le=10**7)]
"""The same, where 0 means something."""
BeamSize = Annotated[int, Field(ge=1, le=1024)]
"""Hypotheses of one search."""
Seed = Annotated[int, Field(ge=-1, le=INT64)]
"""Seed of a random generator; -1 = chosen anew."""
BatchSize = Annotated[int, Field(ge=1, le=10**7)]
"""Examples or tokens that are in memory together."""
Workers = Annotated[int, Field(ge=1, le=256)]
"""Processes or threads on one machine."""
WorkersOrZero = Annotated[int, Field(ge=0, le=256)]
"""The same, where 0 means something."""

LayerCount = Annotated[int, Field(ge=0, le=1024)]
"""Blocks of a model; 0 = none."""
LayerIndex = Annotated[int, Field(ge=-1024, le=1024)]
"""Number of one block, from 0 on; negative = counted from the last, -1."""
Heads = Annotated[int, Field(ge=1, le=2**14)]
"""Heads of an attention."""
HeadsOrAll = Annotated[int, Field(ge=0, le=2**14)]
"""First heads of an attention; 0 = all."""
Width = Annotated[int, Field(ge=1, le=2**20)]
"""Side of a matrix of weights: the size of a layer, the rank of an adapter."""
VocabularySize = Annotated[int, Field(ge=0, le=10**7)]
"""Tokens of a vocabulary; 0 = as many as there are."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""Part of a whole, or a probability."""
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
"""The same, where the whole makes no sense: dropout, a decay of running means."""
Positive = Annotated[float, Field(gt=0, le=1e9)]
"""A rate, a weight, a factor."""
PositiveOrZero = Annotated[float, Field(ge=0, le=1e9)]
"""The same, where 0 means something."""
Real = Annotated[float, Field(ge=-1e9, le=1e9)]
"""Any number, of either sign."""
