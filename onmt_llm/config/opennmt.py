"""What becomes of every option of OpenNMT-py 3.5.1, in one sentence each: the table of docs/reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onmt_llm.config import aliases
from onmt_llm.config.schema import Leaf

COMMANDS = {
    "onmt_train": "onmt_llm_train",
    "onmt_translate": "onmt_llm_translate",
    "onmt_build_vocab": "onmt_llm_build_vocab",
}
"""OpenNMT-py's commands, and ours in their place."""

HEAD = """# OpenNMT-py's options

Every option that `onmt_train -h`, `onmt_translate -h` and `onmt_build_vocab -h` of OpenNMT-py 3.5.1 print, and what
becomes of it in the command of ours that takes its place. Written by `make docs` from the schema and from
`config/aliases.py`. What is accepted is followed by its name or its meaning here; what is gone is an error that says
so, unless its value asks for nothing.

| option | of | here |
|---|---|---|
"""


def read_names(text: str) -> dict[str, list[str]]:
    """Options by command of OpenNMT-py, from lines `command name`."""
    names: dict[str, list[str]] = {command: [] for command in COMMANDS}
    for line in text.splitlines():
        command, name = line.split()
        names[command].append(name)
    return names


def answer(command: str, name: str, tables: Mapping[str, Mapping[str, Leaf]]) -> str | None:
    """What becomes of an option; None where nobody knows it.

    Args:
        command: OpenNMT-py's command.
        name: Its option.
        tables: Options of all our commands, by command.
    """
    own = tables[COMMANDS[command]]
    foreign = aliases.answer(name)
    if name == "config":
        return "accepted: YAML file; several may be given, the last one wins"
    if name in own and (foreign is None or not foreign.startswith("accepted: ")):
        return f"accepted: {_uncapitalised(own[name].doc)}"
    if foreign is not None:
        return foreign
    other = next((ours for ours, table in tables.items() if name in table), None)
    return None if other is None else f"accepted without effect: an option of `{other}`"


def option_table(names: Mapping[str, Iterable[str]], tables: Mapping[str, Mapping[str, Leaf]]) -> str:
    """Markdown: a row for each option, or several where commands differ."""
    rows: dict[tuple[str, str], list[str]] = {}
    for command, name, text in _answers(names, tables):
        rows.setdefault((name, text), []).append(command.removeprefix("onmt_"))
    lines = [
        f"| `{name}` | {', '.join(commands)} | {text.replace('|', chr(92) + '|')} |"
        for (name, text), commands in sorted(rows.items())
    ]
    return HEAD + "\n".join(lines) + "\n"


def _answers(
    names: Mapping[str, Iterable[str]], tables: Mapping[str, Mapping[str, Leaf]]
) -> Iterator[tuple[str, str, str]]:
    for command, options in names.items():
        for name in options:
            yield command, name, answer(command, name, tables) or "not handled yet"


def _uncapitalised(text: str) -> str:
    text = text.rstrip(".")
    return text if text[:2].isupper() or text[:1] == "`" else text[:1].lower() + text[1:]
