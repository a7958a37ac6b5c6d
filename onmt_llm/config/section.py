"""`Section`, the base class of every group of options.

A section is a frozen pydantic model. The string below a field is the documentation of that option: help, option
reference and JSON schema are generated from it. Numeric fields use the bounded types of `config.numbers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from onmt_llm.config.numbers import INT64

DERIVED: Final[JsonDict] = {"derived": True}
"""`json_schema_extra` of a field that is stored with a model but derived from other options; it is no option itself."""


class Section(BaseModel):
    """A frozen group of options. Unknown keys are errors. So are non-finite numbers and numbers of more than 64 bits,
    since plug-ins may declare numbers without bounds, and booleans where a number belongs."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def resolved(self) -> Self:
        """The same options with derived values filled in, if the job has any."""
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """By itself, pydantic accepts `true` as 1."""
        types = types_in(cls.model_fields[str(info.field_name)].annotation)
        if types & {int, float} and bool not in types and any(isinstance(each, bool) for each in _scalars_in(value)):
            raise PydanticCustomError("int_type" if int in types else "float_type", "must be a number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _no_huge_numbers(cls, value: Any) -> Any:
        if any(isinstance(each, int) and abs(each) > INT64 for each in _scalars_in(value)):
            raise PydanticCustomError("number_size", "must be a number of at most 64 bits")
        return value


def types_in(annotation: Any) -> set[Any]:
    """The plain types in an annotation: `list[Annotated[int, ...]] | None` -> int, NoneType."""
    if hasattr(annotation, "__metadata__"):
        return types_in(annotation.__origin__)
    arguments = get_args(annotation)
    return set().union(*map(types_in, arguments)) if arguments else {annotation}


def _scalars_in(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _scalars_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _scalars_in(each)
    else:
        yield value
