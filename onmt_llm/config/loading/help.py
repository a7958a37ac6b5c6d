"""The pages of `-help`: a first page that fits a screen, a section, an option, or everything.

All lines fit the width of the terminal.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onmt_llm.commands import COMMANDS, Command
from onmt_llm.config.compat.names import RENAMED
from onmt_llm.config.compat.translate import describe
from onmt_llm.config.section import Option
from onmt_llm.errors import ConfigError
from onmt_llm.registry import nearest

ALL = "all"
_WIDEST = 100
_FEW = 20
"""A command with at most this many options lists all of them on the first page."""
_COLUMN = 28
_NOT_ON_FIRST_PAGE = ("set", "help", "version")
_HOW_TO_SET = "Set options in YAML files (-config) or by flags; flags win."


@dataclass(frozen=True)
class Manual:
    """The contents of the help of a command.

    Attributes:
        prog: Name of the command.
        about: Description of the command.
        flags: Flags that are not options of its job: name, placeholder of the value, description.
        sections: Description of each section of options, in order.
        table: The options, by name.
    """

    prog: str
    about: str
    flags: Sequence[tuple[str, str, str]]
    sections: Mapping[str, str]
    table: Mapping[str, Option]

    @property
    def command(self) -> Command:
        """The entry in the table of commands."""
        return COMMANDS.get(self.prog, Command("", self.about, "[-OPTION VALUE ...]"))


def width() -> int:
    """Columns of the terminal, at most 100; 80 without a terminal."""
    return max(20, min(shutil.get_terminal_size((80, 24)).columns, _WIDEST))


def show(manual: Manual, topic: str, columns: int) -> str:
    """The help on a topic: a section, an option, or `all`; without a topic, the first page.

    Raises:
        ConfigError: There is no such topic.
    """
    if not topic:
        lines = _first_page(manual, columns)
    elif topic == ALL:
        lines = _everything(manual, columns)
    else:
        lines = _topic(manual, topic.lstrip("-").replace("-", "_"), columns)
    return "\n".join(lines)


def rows(entries: Iterable[tuple[str, str]], columns: int) -> Iterator[str]:
    """The lines of a list of names and phrases."""
    listed = list(entries)
    column = max(len(name) for name, _ in listed) + 4
    for name, phrase in listed:
        yield from _row(name, phrase, columns, column=column)


def _first_page(manual: Manual, columns: int) -> Iterator[str]:
    command, table = manual.command, manual.table
    yield from _usage(manual, columns)
    yield from _wrapped(f"{command.phrase} {_HOW_TO_SET}", columns)
    yield ""
    names = list(table) if len(table) <= _FEW else [name for name in command.options if name in table]
    yield from _wrapped("options:" if len(names) == len(table) else "common options:", columns)
    for name, value, text in manual.flags:
        if name not in _NOT_ON_FIRST_PAGE:
            yield from _row(f"-{name} {value}".rstrip(), text, columns)
    for name in names:
        yield from _row(f"-{name} {_placeholder(table[name])}".rstrip(), summary(table[name].doc), columns)
    yield ""
    yield from _wrapped("more: -help OPTION, -help SECTION, -help all. Sections:", columns)
    own = {option.section for option in table.values() if not option.extra}
    for section, about in manual.sections.items():
        if section in own:
            yield from _row(section, summary(about).partition(": ")[0], columns)
    others = [section for section in manual.sections if section not in own]
    if others:
        yield from _wrapped(f"of transforms: {', '.join(others)}", columns, indent="  ")
    if command.examples:
        yield "examples:"
        for line, what in command.examples:
            yield from _row(f"{manual.prog} {line}", f"# {what}", columns, column=columns)


def _everything(manual: Manual, columns: int) -> Iterator[str]:
    yield from _usage(manual, columns)
    yield ""
    yield from _wrapped(manual.about, columns)
    yield ""
    for name, value, text in manual.flags:
        yield from _row(f"-{name} {value}".rstrip(), text, columns)
    for section in manual.sections:
        yield ""
        yield from _section(manual, section, columns)


def _topic(manual: Manual, topic: str, columns: int) -> Iterator[str]:
    if topic in manual.sections:
        return _section(manual, topic, columns)
    if topic in manual.table:
        return _option(manual.table[topic], columns)
    foreign = RENAMED.get(topic, "")
    if foreign in manual.table:
        return _option(manual.table[foreign], columns)
    said = describe(topic)
    if said is not None:
        return _wrapped(f"{topic}, an option of OpenNMT-py: {said}.", columns)
    for name, value, text in manual.flags:
        if name == topic:
            return _row(f"-{name} {value}".rstrip(), text, columns, column=0)
    guess = nearest(topic, [*manual.table, *manual.sections, ALL])
    raise ConfigError(
        f"'{topic}' is not an option or a section of {manual.prog}" + (f": did you mean '{guess}'?" if guess else "."),
        hint=f"{manual.prog} -help lists the sections",
    )


def _section(manual: Manual, section: str, columns: int) -> Iterator[str]:
    yield from _wrapped(f"{section}: {manual.sections[section]}", columns)
    for option in manual.table.values():
        if option.section == section:
            yield from _option(option, columns, indent="  ")


def _option(option: Option, columns: int, indent: str = "") -> Iterator[str]:
    """The full description of an option."""
    yield from _wrapped(f"-{option.name} {_placeholder(option)}".rstrip() + _default(option), columns, indent=indent)
    text = option.doc
    if option.choices:
        text += f" One of: {', '.join(str(choice) for choice in option.choices if choice != '')}."
    names = sorted(name for name, own in RENAMED.items() if own == option.name)
    if names:
        text += f" Also: {', '.join(f'-{name}' for name in names)}."
    yield from _wrapped(text, columns, indent=f"{indent}    ")


def _usage(manual: Manual, columns: int) -> Iterator[str]:
    usage = f"usage: {manual.prog} {manual.command.usage}"
    return iter(textwrap.wrap(usage, columns, subsequent_indent="       ", break_on_hyphens=False))


def _placeholder(option: Option) -> str:
    if option.is_bool:
        return ""
    if option.choices:
        return "WORD"
    kind = option.type_name.upper()
    if option.is_list:
        return f"{kind.removeprefix('LIST OF ')} ..."
    return kind


def _default(option: Option) -> str:
    if option.default in (None, "", [], {}) or option.is_mapping:
        return ""
    return f" [{_short(option.default)}]"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def summary(text: str) -> str:
    """The first sentence, without its full stop."""
    return re.split(r"(?<!et al)\. |; |\.$", text, maxsplit=1)[0]


def _row(name: str, text: str, columns: int, *, column: int = _COLUMN) -> Iterator[str]:
    """`name` and a one-line description beside it, or below it if the column is too narrow."""
    column = min(column, columns // 2)
    start = f"  {name.ljust(column - 2)}" if len(name) + 4 <= column else f"  {name}  "
    if len(name) + 4 <= column or len(start) + len(text) <= columns or len(start) <= columns // 2:
        yield start + _cut(text, columns - len(start))
    else:
        yield from _wrapped(name, columns, indent="  ")
        yield f"      {_cut(text, columns - 6)}"


def _cut(text: str, columns: int) -> str:
    return textwrap.shorten(text, columns, placeholder=" ...")


def _wrapped(text: str, columns: int, indent: str = "") -> Iterator[str]:
    return iter(textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False))
