"""Text generated from the schema: `-print_config`, the option reference, the JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.section import Option, Section, derived, options_of


def print_config(loaded: Loaded[Any]) -> str:
    """The resolved configuration as valid YAML, with the origin of every value as a comment."""
    job = loaded.job.resolved()
    sections: dict[str, Section] = {name: getattr(job, name) for name in type(job).model_fields}
    lines: list[str] = []
    for name, section in {**sections, **loaded.options}.items():
        lines.append(f"{name}:")
        for option, value in section.model_dump(mode="json", exclude=derived(type(section))).items():
            origin = loaded.origins.get(option, "default")
            first, *rest = _yaml_lines({option: _without_defaults(section, option, value)})
            lines.append(f"  {first.ljust(44)}  # {origin}")
            lines += [f"  {line}" for line in rest]
    return "\n".join(lines)


def _without_defaults(section: Section, option: str, value: Any) -> Any:
    """The value to print; in a mapping of sections (the corpora), options at their defaults are omitted."""
    held = getattr(section, option)
    if isinstance(held, dict) and all(isinstance(item, Section) for item in held.values()):
        return {name: item.model_dump(mode="json", exclude_unset=True) for name, item in held.items()}
    return value


def _yaml_lines(value: dict[str, Any]) -> list[str]:
    flow = {key: item if isinstance(item, dict) else _Flow(item) for key, item in value.items()}
    return yaml.dump(flow, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=10_000).rstrip("\n").split("\n")


class _Flow:
    """A value to write on one line."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Dumper(yaml.SafeDumper):
    pass


def _flow(dumper: yaml.SafeDumper, flow: _Flow) -> yaml.Node:
    if isinstance(flow.value, list):
        return dumper.represent_sequence("tag:yaml.org,2002:seq", flow.value, flow_style=True)
    return dumper.represent_data(flow.value)


_Dumper.add_representer(_Flow, _flow)


def option_tables(job: type[Section], extra: Mapping[str, type[Section]] | None = None) -> str:
    """The option reference in Markdown: a table of options per section."""
    parts: list[str] = []
    kinds: dict[str, Any] = {name: info.annotation for name, info in job.model_fields.items()} | dict(extra or {})
    table = options_of(job, extra)
    for section, kind in kinds.items():
        rows = [_row(option) for option in table.values() if option.section == section]
        about = " ".join((kind.__doc__ or "").split())
        parts.append(
            "\n".join(
                [
                    f"### {section}",
                    "",
                    about,
                    "",
                    "| option | type | default | description |",
                    "|---|---|---|---|",
                    *rows,
                ]
            )
        )
    return "\n\n".join(parts)


def _row(option: Option) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    default = "" if option.is_mapping else json.dumps(option.default, ensure_ascii=False, default=str)
    return f"| `{option.name}` | {cell(option.type_name)} | {cell(default)} | {cell(option.doc)} |"


def json_schema(job: type[Section], extra: Mapping[str, type[Section]] | None = None) -> dict[str, Any]:
    """The JSON schema of the flat YAML, for editors."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    kinds: list[Any] = [info.annotation for info in job.model_fields.values()]
    for kind in [*kinds, *(extra or {}).values()]:
        schema = kind.model_json_schema()
        properties.update({name: p for name, p in schema.get("properties", {}).items() if not p.get("derived")})
        definitions.update(schema.get("$defs", {}))
    for kind in (extra or {}).values() if "CorpusConfig" in definitions else ():
        definitions["CorpusConfig"]["properties"].update(kind.model_json_schema()["properties"])
    return {"type": "object", "properties": properties, "$defs": definitions, "additionalProperties": False}
