"""`Section`, the base of every group of options.

A section is a frozen pydantic model. The string below a field is that option's documentation: help texts, the option
reference and the example YAML all come from it.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

DERIVED: Final[JsonDict] = {"derived": True}
"""`json_schema_extra` of a field that is stored with a model but follows from other options: no option of a job."""


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
