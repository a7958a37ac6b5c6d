"""`onmt_llm COMMAND ...` (also `python -m onmt_llm`): all commands under one name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onmt_llm.cli.run import run
from onmt_llm.commands import COMMANDS, SUBCOMMANDS, Command, short_name
from onmt_llm.config.loading.help import rows, width
from onmt_llm.errors import ConfigError
from onmt_llm.registry import nearest
from onmt_llm.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(words: Sequence[str]) -> int:
    first = words[0].lstrip("-") if words else "help"
    if first in ("h", "help"):
        if len(words) > 1:
            return _call([*words[1:2], "-help", *words[2:]])
        print("\n".join(_page()))
        return 0
    if first == "version" and words[0].startswith("-"):
        print(f"onmt_llm {__version__}")
        return 0
    return _call(words)


def _call(words: Sequence[str]) -> int:
    commands = _commands() | COMMANDS
    name = words[0].replace("-", "_")
    if name not in commands:
        guess = nearest(name, commands)
        raise ConfigError(
            f"'{words[0]}' is not a command of onmt_llm" + (f": did you mean '{guess}'?" if guess else "."),
            hint="onmt_llm -help lists them",
        )
    if name in SUBCOMMANDS and any(word.lstrip("-") in ("h", "help") for word in words[1:] if word.startswith("-")):
        print("\n".join(_page_of(name)))
        return 0
    return commands[name].call(list(words[1:]))


def _commands() -> dict[str, Command]:
    """The commands by the names that follow `onmt_llm`."""
    return {short_name(name): command for name, command in COMMANDS.items()} | SUBCOMMANDS


def _page_of(name: str) -> Iterator[str]:
    """The help of a command without options."""
    command = SUBCOMMANDS[name]
    yield f"usage: onmt_llm {name} {command.usage}"
    yield from ("", command.phrase, "", "examples:")
    for line, what in command.examples:
        yield f"  onmt_llm {name} {line}".rstrip()
        yield f"      {what}"


def _page() -> Iterator[str]:
    yield "usage: onmt_llm COMMAND ..."
    yield ""
    yield "commands:"
    yield from rows(((name, command.phrase) for name, command in _commands().items()), width())
    yield ""
    yield "more:"
    more = (("onmt_llm help COMMAND", "its options"), ("onmt_llm help COMMAND OPTION", "one option"))
    yield from rows(more, width())


if __name__ == "__main__":
    raise SystemExit(main())
