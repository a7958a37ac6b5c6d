"""What becomes of every option of OpenNMT-py 3.5.1, in one sentence each: the table of docs/reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from onmt_llm.config.compat import names as foreign
from onmt_llm.config.compat import opennmt_defaults
from onmt_llm.config.compat import translate as aliases
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.schema import Leaf
from onmt_llm.config.task import with_defaults

COMMANDS = {
    "onmt_train": "onmt_llm_train",
    "onmt_translate": "onmt_llm_translate",
    "onmt_build_vocab": "onmt_llm_build_vocab",
}
"""OpenNMT-py's commands, and ours in their place."""

HEAD = """# OpenNMT-py's options

Every option that `onmt_train -h`, `onmt_translate -h` and `onmt_build_vocab -h` of OpenNMT-py 3.5.1 print, its default
there and here, and what becomes of it in the command of ours that takes its place. Written by `make docs` from the
schema and from `config/compat/translate.py`. What is accepted is followed by its name or its meaning here; what is gone
is an error that says so, unless its value asks for nothing. Defaults here are those of a new translation model, and
stand where there is an option of ours with that meaning; where they are not OpenNMT-py's, they are in **bold**.

| option | of | default there | default here | what becomes of it |
|---|---|---|---|---|
"""

CommandDefaults = dict[str, dict[str, Any]]
"""Defaults of OpenNMT-py's options, by command and name."""


def read_options(text: str) -> CommandDefaults:
    """Options of OpenNMT-py and their defaults, from lines `command name default`, the default as JSON."""
    options: CommandDefaults = {command: {} for command in COMMANDS}
    for line in text.splitlines():
        command, name, default = line.split(" ", 2)
        options[command][name] = json.loads(default)
    return options


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


def option_table(options: CommandDefaults, tables: Mapping[str, Mapping[str, Leaf]]) -> str:
    """Markdown: a row for each option, or several where commands differ."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for command, defaults in options.items():
        for name, theirs in defaults.items():
            text = answer(command, name, tables) or "not handled yet"
            here = default_here(name, tables[COMMANDS[command]])
            shown = "" if here is None else _shown(here[0], bold=not same_default(theirs, here))
            rows.setdefault((name, text, _shown(theirs), shown), []).append(command.removeprefix("onmt_"))
    lines = [
        f"| `{name}` | {', '.join(commands)} | {theirs} | {here} | {text.replace('|', chr(92) + '|')} |"
        for (name, text, theirs, here), commands in sorted(rows.items())
    ]
    return HEAD + "\n".join(lines) + "\n"


def default_here(name: str, own: Mapping[str, Leaf]) -> tuple[Any, str] | None:
    """Our default in the place of an option of OpenNMT-py, and the leaf that has it; None where there is no such."""
    leaf = foreign.RENAMED.get(name, opennmt_defaults.DIFFERENT.get(name, (None, name))[1])
    if not leaf:
        return "transformer", leaf
    if leaf not in own:
        return None
    if own[leaf].section == "architecture":
        return getattr(with_defaults(ModelConfig(), "seq2seq", family="onmt_llm"), leaf), leaf
    return own[leaf].default, leaf


def same_default(theirs: Any, here: tuple[Any, str]) -> bool:
    """Whether a default of OpenNMT-py means ours: it has no word for "not given" but an empty one."""
    value, leaf = here
    meant = aliases.translate({leaf: theirs}).values.get(leaf, theirs)
    unnamed = theirs is None or (value is None and leaf not in opennmt_defaults.DIFFERENT)
    return unnamed or meant == value or str(theirs) == str(value) or (not theirs and not value)


def _shown(value: Any, *, bold: bool = False) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
    return f"**`{text}`**" if bold else f"`{text}`"


def _uncapitalised(text: str) -> str:
    text = text.rstrip(".")
    return text if text[:2].isupper() or text[:1] == "`" else text[:1].lower() + text[1:]
