"""`Section`, the base of every group of options.

A section is a frozen pydantic model. The string below a field is that option's documentation: help texts, the option
reference and the example YAML all come from it. A field that is a number is declared by its kind (`config.numbers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from onmt_llm.config.numbers import INT64

DERIVED: Final[JsonDict] = {"derived": True}
"""`json_schema_extra` of a field that is stored with a model but follows from other options: no option of a job."""


class Section(BaseModel):
    """A frozen group of options. Unknown keys are errors, and so are numbers that are not finite or wider than 64 bits
    (plug-ins may declare no bounds), and truth values in the place of numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def settled(self) -> Self:
        """The same with the values that follow from others, where a job has such values."""
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic alone takes `true` for 1."""
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
    """The plain types that an annotation is made of: `list[Annotated[int, ...]] | None` -> int, NoneType."""
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
