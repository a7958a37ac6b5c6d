"""Command-line flags, built from the options of a job.

Every option can be written `-x v`, `--x v`, `--x=v`, and with `-` instead of `_`. Flags cannot be abbreviated: an
unknown flag is an error that suggests the nearest one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onmt_llm.config.compat.translate import inert_names, known_names
from onmt_llm.config.loading.help import Manual, show, width
from onmt_llm.config.section import Option
from onmt_llm.errors import ConfigError, Problem
from onmt_llm.registry import nearest
from onmt_llm.version import __version__

_NUMBER = re.compile(r"^-(\.?\d[\d._]*([eE][-+]?\d+)?|\.?(inf|nan))$", re.IGNORECASE)
_GUARD = "\0"  # put before negative numbers, which argparse would take for flags; cannot occur in a command line
_SHORT = {"h": "help"}


@dataclass(frozen=True)
class CommandLine:
    """A command and the flags that are not options of its job.

    Attributes:
        prog: Name of the command.
        switches: Flags of the command itself, with their help: `{"dry_run": "..."}`.
        short: One-letter flags: `{"q": "quantization"}`.
    """

    prog: str
    switches: Mapping[str, str] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)


@dataclass
class ParsedArguments:
    """A command line split into its parts, with untyped values."""

    configs: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    sets: list[tuple[str, str]] = field(default_factory=list)
    switches: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def normalise(argv: Sequence[str], known: Collection[str], command: CommandLine) -> tuple[list[str], list[Problem]]:
    """Rewrite every flag as `--snake_case`, and drop unknown flags with their values.

    By itself, argparse would take `-n_sampel` for `-n` and `-conf` for `-config`.

    Returns:
        The words, and a problem for each unknown flag.
    """
    prog, short = command.prog, {**_SHORT, **command.short}
    result: list[str] = []
    problems: list[Problem] = []
    unknown = False
    for word in argv:
        if word == "--":
            raise ConfigError(
                f"Every argument of {prog} must belong to a flag, but '--' does not.",
                hint=f"{prog} -help lists them all",
            )
        if not word.startswith("-") or word == "-" or _NUMBER.match(word):
            result += [] if unknown else [_GUARD + word if _NUMBER.match(word) else word]
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        name = short.get(name, name)
        unknown = name not in known
        if unknown:
            problems.append(_unknown_flag(word.split("=")[0], name, known, prog))
        else:
            result.append(f"--{name}{equals}{value}")
    return result, problems


def _unknown_flag(flag: str, name: str, known: Collection[str], prog: str) -> Problem:
    guess = nearest(name, set(known) - inert_names())
    close = f": did you mean '-{guess}'?" if guess else "."
    return Problem(f"'{flag}' is not an option of {prog}{close}", hint=f"{prog} -help lists them all")


def words_of(flag: str, argv: Sequence[str]) -> list[str]:
    """The arguments of one flag, wherever it occurs; for use before `parse`, when not all flags are known yet."""
    found: list[str] = []
    ours = False
    for word in argv:
        if word.startswith("-") and word != "-" and not _NUMBER.match(word):
            name, equals, value = word.lstrip("-").partition("=")
            ours = name == flag
            found += [value] if ours and equals else []
        elif ours:
            found.append(word)
    return found


def parse(
    argv: Sequence[str],
    table: Mapping[str, Option],
    command: CommandLine,
    *,
    about: str = "",
    sections: Mapping[str, str] | None = None,
) -> ParsedArguments:
    """Split a command line into configuration files, values and switches.

    Args:
        argv: Command line without the program name.
        table: The options, by name.
        command: Name and flags of the command.
        about: Description of the command, for the help.
        sections: Description of each section of options, for the help.

    Raises:
        ConfigError: A flag lacks its value, or an argument belongs to no flag.
        SystemExit: After `-help` or `-version`.
    """
    foreign = {name for name in known_names() if name not in table}
    own = {"config", "print_config", "set", "help", "version", *command.switches}
    words, problems = normalise(argv, own | table.keys() | foreign, command)
    _answer(words, table, command, about=about, sections=sections or {})
    parser = _Parser(prog=command.prog, allow_abbrev=False, add_help=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--print_config", action="store_true")
    for name in command.switches:
        parser.add_argument(f"--{name}", action="store_true")
    for option in table.values():
        # values stay text here; the schema types them
        nargs = "*" if option.is_list else ("?" if option.is_bool else 1)
        const = ["true"] if option.is_bool else None
        parser.add_argument(f"--{option.name}", nargs=nargs, const=const, default=argparse.SUPPRESS, action=_StoreWords)
    for name in sorted(foreign):
        parser.add_argument(f"--{name}", nargs="*", default=argparse.SUPPRESS)
    namespace = vars(parser.parse_args(words))
    result = ParsedArguments(configs=namespace.pop("config"), problems=problems)
    for pair in namespace.pop("set"):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set needs KEY=VALUE, but got '{pair}'.")
        result.sets.append((key, value))
    result.switches = {name: namespace.pop(name) for name in ["print_config", *command.switches]}
    for name in [key for key, words in namespace.items() if words == [] and key in table]:
        del namespace[name]
        result.problems.append(
            Problem(
                f"'-{name}' must have a value, but has none.",
                hint=f"-{name}=VALUE, also if it begins with a dash; -{name} [] is the empty list",
            )
        )
    result.values = {
        key: True if words == [] else [word.removeprefix(_GUARD) for word in words] for key, words in namespace.items()
    }
    return result


def _answer(
    words: Sequence[str],
    table: Mapping[str, Option],
    command: CommandLine,
    *,
    about: str,
    sections: Mapping[str, str],
) -> None:
    """Print the version or the help if requested, and exit."""
    for position, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "--version":
            print(f"{command.prog} {__version__}")
            raise SystemExit(0)
        if name == "--help":
            rest = [value] if value else [each for each in words[position + 1 :] if not each.startswith("--")]
            flags = [*FLAGS, *((switch, "", text) for switch, text in command.switches.items())]
            manual = Manual(command.prog, about, flags, sections, table)
            print("\n\n".join(show(manual, topic, width()) for topic in rest or [""]))
            raise SystemExit(0)


FLAGS = (
    ("config", "FILE", "YAML file; may be repeated, later files win"),
    ("set", "KEY=VALUE", "set a nested value: data.alpaca.weight=5"),
    ("print_config", "", "print every option, its value and where it was set"),
    ("help", "[SECTION|OPTION|all]", "show this page, a section, an option, or all"),
    ("version", "", "print the version"),
)


class _StoreWords(argparse.Action):
    """Store the arguments of a flag as a list of strings, however many there are."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        words = [values] if isinstance(values, str) else values
        setattr(namespace, self.dest, words if words is not None else ["true"])


class _Parser(argparse.ArgumentParser):
    """argparse that raises `ConfigError`."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}.".replace("--", "-"), hint=f"{self.prog} -help lists the options")
