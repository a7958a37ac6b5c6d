"""`Section`, the base class of every group of options, and `options_of`, which lists the options of a job.

A section is a frozen pydantic model. The string below a field is the documentation of that option: help, option
reference and JSON schema are generated from it. Numeric fields use the bounded types of `config.numbers`.

A job is a `Section` whose fields are sections; the fields of those sections are its options. Option names are unique
within a job, so a flat YAML (as in OpenNMT-py) and a sectioned YAML mean the same.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from onmt_llm.config.numbers import INT64

if TYPE_CHECKING:
    from typing_extensions import Self

DERIVED: Final[JsonDict] = {"derived": True}
"""`json_schema_extra` of a field that is stored with a model but derived from other options; it is no option itself."""

T = TypeVar("T")


def _split(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    words = [each.split(",") if isinstance(each, str) else [each] for each in value]
    return [name.strip() if isinstance(name, str) else name for each in words for name in each if name != ""]


Names = Annotated[list[T], BeforeValidator(_split)]
"""A list of names, none of which has a comma in it, so that commas may separate them too: `-metrics BLEU,CHRF`."""


class Section(BaseModel):
    """A frozen group of options. Unknown keys are errors. So are non-finite numbers and numbers of more than 64 bits,
    since plug-ins may declare numbers without bounds, and booleans where a number belongs."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What was set; the defaults of all options would fill a page."""
        hidden = [name for name, info in type(self).model_fields.items() if info.json_schema_extra == DERIVED]
        for name, value in super().__repr_args__():
            if name in self.model_fields_set and name not in hidden:
                yield name, value

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


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        section: Name of its section.
        name: Its name, as YAML key and as flag.
        info: Type, default and constraints.
        extra: Whether the section belongs to a transform instead of the job.
    """

    section: str
    name: str
    info: FieldInfo
    extra: bool = False

    @property
    def default(self) -> Any:
        return self.info.get_default(call_default_factory=True)

    @property
    def doc(self) -> str:
        return " ".join((self.info.description or "").split())

    @property
    def is_list(self) -> bool:
        return get_origin(_without_none(self.info.annotation)) is list

    @property
    def is_bool(self) -> bool:
        return _without_none(self.info.annotation) is bool

    @property
    def is_mapping(self) -> bool:
        kind = _without_none(self.info.annotation)
        return get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Section))

    @property
    def choices(self) -> tuple[Any, ...]:
        kind = _without_none(self.info.annotation)
        if get_origin(kind) is list:
            kind = get_args(kind)[0]
        return get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def type_name(self) -> str:
        """The type in words, for help and documentation."""
        if self.choices:
            return "|".join(str(choice) for choice in self.choices if choice != "")
        kind = _without_none(self.info.annotation)
        if get_origin(kind) is list:
            return f"list of {getattr(_without_none(get_args(kind)[0]), '__name__', 'values')}"
        if self.is_mapping:
            return "mapping"
        return getattr(kind, "__name__", "value")


def derived(section: type[Section]) -> set[str]:
    """Fields of a section that are derived from other options, and no options themselves."""
    return {name for name, info in section.model_fields.items() if info.json_schema_extra == DERIVED}


def _without_none(annotation: Any) -> Any:
    """`X | None` -> X, without numeric bounds."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in get_args(annotation) if arg is not type(None)]
        return _without_none(rest[0])
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def options_of(job: type[Section], extra: Mapping[str, type[Section]] | None = None) -> dict[str, Option]:
    """All options of a job by name, including those of the `extra` sections of transforms.

    Names must be unique; an assertion fails otherwise.
    """
    found: dict[str, Option] = {}
    sections = {name: (info.annotation, False) for name, info in job.model_fields.items()}
    sections.update({name: (kind, True) for name, kind in (extra or {}).items()})
    for section, (kind, is_extra) in sections.items():
        assert isinstance(kind, type) and issubclass(kind, Section), f"{job.__name__}.{section} must be a Section"
        for name, info in kind.model_fields.items():
            if name in derived(kind):
                continue
            assert name not in found and name not in sections, (
                f"option name {name!r} is defined twice in {job.__name__}"
            )
            found[name] = Option(section, name, info, is_extra)
    return found


def set_options(sections: Iterable[tuple[str, Section]] | Mapping[str, Section]) -> dict[str, Any]:
    """The options that were set in a job, or in the sections of transforms, by name."""
    found: dict[str, Any] = {}
    for _, section in sections.items() if isinstance(sections, Mapping) else sections:
        hidden = derived(type(section))
        for name in section.model_fields_set:
            value = getattr(section, name)
            if name not in hidden:
                found[name] = value
            elif name == "transform_options":
                found |= set_options(value)
    return found


def section_docs(job: type[Section], extra: Mapping[str, type[Section]] | None = None) -> dict[str, str]:
    """The documentation of each section of a job, by section name."""
    kinds: dict[str, Any] = {name: info.annotation for name, info in job.model_fields.items()} | dict(extra or {})
    return {name: " ".join((kind.__doc__ or "").split()) for name, kind in kinds.items()}
