"""The tutorials: each runs from top to bottom in an empty folder, exactly as written, and prints what it shows.

A block with a title is written to that file. A shell block is run; a command of ours on a line of its own runs in this
process, because importing torch would take most of the time. A text block is the output of the shell block before it:
each of its lines must occur there, in order, with any numbers in place of decimal ones. If it begins with `error:`, the
last command must fail. A diff is applied to a copy of package and tests, which the commands use. A block of `sh` is not
run (a server, a download). The Hugging Face Hub is a small one on this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_hub
import pytest

from onmt_llm.commands import COMMANDS
from onmt_llm.data.transforms import TRANSFORMS
from onmt_llm.generate.scorers import SCORERS

ROOT = Path(__file__).parents[2]
PAGES = [
    page for page in sorted(ROOT.glob("docs/tutorials/*.md")) if page.name != "python.md"
]  # test_python_tutorial.py
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?:\d+,)*\d+\\\.\d+")
PACKAGES = {
    "add-a-scorer.md": ["sacrebleu"],
    "add-a-model-family.md": ["transformers", "tokenizers"],
    "fine-tune.md": ["transformers", "tokenizers", "ctranslate2"],
    "take-your-model-elsewhere.md": [
        *("transformers", "tokenizers", "ctranslate2", "peft", "gguf", "huggingface_hub", "cyllama")
    ],
    "translation.md": ["sacrebleu", "matplotlib", "sentencepiece", "ctranslate2"],
}


LONG = {"add-a-model-family.md", "translation.md"}
"""Pages whose steps have other tests in the quick tier."""
CONTINUED = {"take-your-model-elsewhere.md": ("fine-tune.md", "## 5.")}
"""Pages that begin in the folder of another one, and the heading there at which they take over."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the file that it is written to, its lines."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, after those of the page that it continues."""
    text = page.read_text(encoding="utf-8")
    if page.name in CONTINUED:
        name, heading = CONTINUED[page.name]
        text = page.with_name(name).read_text(encoding="utf-8").partition(heading)[0] + text
    for language, title, content in BLOCK.findall(text):
        yield Block(language, title, content)


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
    """Each line of `shown` occurs in `output`, after the one before it."""
    start = 0
    for line in filter(str.strip, shown.splitlines()):
        pattern = re.sub(r"(?:\\ )+", r" +", NUMBER.sub(r"[-\\d.,e+]+", re.escape(line.strip())))
        found = re.compile(pattern).search(output, start)
        assert found, f"not printed: {line}\n{output}"
        start = found.end()


def follow(page: Path, reader: Reader) -> None:
    parts = list(blocks(page))
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


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.name in LONG else []) for page in PAGES],
)
def test_a_tutorial_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for package in PACKAGES.get(page.name, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    # plug-ins of a page must not be there for the next test
    monkeypatch.setattr(sys, "path", [*sys.path])
    for registry in (TRANSFORMS, SCORERS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))

    def printed() -> str:
        captured = capfd.readouterr()
        return captured.err + captured.out  # a command prints its result last

    with fake_hub.serving() as hub:
        if "huggingface_hub" in PACKAGES.get(page.name, ()):
            fake_hub.use(hub, monkeypatch, tmp_path)
        follow(page, Reader(tmp_path, printed))
