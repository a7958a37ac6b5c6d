"""Somebody who follows a page of the documents: runs its commands, and compares what they print with what it shows.

A block with a title is written to that file. A shell block is run; a command of ours on a line of its own runs in this
process, because importing torch would take most of the time. A text block is the output of the shell block before it:
each of its lines must occur there, in order, with any numbers in place of decimal ones. If it begins with `error:`, the
last command must fail. A diff is applied to a copy of package and tests, which the commands use. A block of `sh` is not
run (a server, a download).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onmt_llm.commands import COMMANDS

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?:\d+,)*\d+\\\.\d+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the file that it is written to, its lines."""

    language: str
    title: str
    text: str


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text."""
    return [Block(*found) for found in BLOCK.findall(text)]


def command_lines(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", "").splitlines() if line.strip()]


class Reader:
    """Somebody who follows a page in `folder`.

    Attributes:
        folder: The working directory.
        printed: Returns what was printed to the terminal since the last call.
    """

    def __init__(self, folder: Path, printed: Callable[[], str]) -> None:
        self.folder = folder
        self.printed = printed
        self.changed = False  # whether the package was copied and edited

    def run(self, line: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        words = shlex.split(line, comments=True)
        if words[0] in COMMANDS and not self.changed and not re.search(r"[|<>;&$*]", line):
            self.printed()
            code = COMMANDS[words[0]].call(words[1:])
            return code, self.printed()
        source = self.folder if self.changed else ROOT
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(source),
            "CLONE": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.returncode, done.stdout

    def write(self, block: Block) -> None:
        file = self.folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")

    def apply(self, block: Block) -> None:
        words = ["git", "apply", "--unidiff-zero", "-"]
        subprocess.run(words, cwd=self.folder, input=block.text, text=True, check=True)

    def clone(self) -> None:
        """Copy the package and its tests, for a page that changes them."""
        for name in ("onmt_llm", "tests"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.changed = True


def check(output: str, shown: str) -> None:
    """Each line of `shown` occurs in `output`, after the one before it. Processors differ in decimals, and in whether a
    computation that overflows ends with inf or nan."""
    start = 0
    for line in filter(str.strip, shown.splitlines()):
        pattern = re.sub(r"(?:\\ )+", r" +", NUMBER.sub(r"[-\\d.,e+]+", re.escape(line.strip())))
        found = re.compile(re.sub(r"\b(?:inf|nan)\b", "(?:inf|nan)", pattern)).search(output, start)
        assert found, f"not printed: {line}\n{output}"
        start = found.end()


def follow(parts: list[Block], reader: Reader) -> None:
    """Run the shell blocks, and compare what they print with the text block after each."""
    if any(block.language == "diff" or block.title.startswith("onmt_llm/") for block in parts):
        reader.clone()
    for block, following in zip(parts, [*parts[1:], Block("", "", "")], strict=True):
        if block.title:
            reader.write(block)
        elif block.language == "diff":
            reader.apply(block)
        elif block.language == "shell":
            shown = following.text if following.language == "text" else ""
            output = ""
            lines = command_lines(block)
            for line in lines:
                code, printed = reader.run(line)
                output += printed
                must_fail = line is lines[-1] and shown.startswith("error:")
                assert (code != 0) == must_fail, f"{line}\nexit code {code}\n{output}"
            check(output, shown)
