"""`Section`, the base of every group of options.

A section is a frozen pydantic model. The string below a field is that option's documentation: help texts, the option
reference and the example YAML all come from it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
