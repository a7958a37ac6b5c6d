"""The tutorials: each runs from top to bottom in an empty folder, as written, and prints what it shows (see `pages`).

The Hugging Face Hub is a small one on this machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fake_hub
import pytest
from pages import Block, Reader, blocks_of, follow

from onmt_llm.data.transforms import TRANSFORMS
from onmt_llm.generate.scorers import SCORERS

ROOT = Path(__file__).parents[2]
PAGES = [
    page for page in sorted(ROOT.glob("docs/tutorials/*.md")) if page.name != "python.md"
]  # test_python_tutorial.py
PACKAGES = {
    "add-a-scorer.md": ["sacrebleu"],
    "add-a-model-family.md": ["transformers", "tokenizers"],
    "fine-tune.md": ["transformers", "tokenizers", "ctranslate2"],
    "take-your-model-elsewhere.md": [
        *("transformers", "tokenizers", "ctranslate2", "peft", "gguf", "huggingface_hub", "cyllama")
    ],
    "translation.md": ["sacrebleu", "matplotlib", "sentencepiece", "ctranslate2"],
}


LONG = {"add-a-model-family.md", "take-your-model-elsewhere.md", "translation.md"}
"""Pages whose steps have other tests in the quick tier."""
CONTINUED = {"take-your-model-elsewhere.md": ("fine-tune.md", "## 5.")}
"""Pages that begin in the folder of another one, and the heading there at which they take over."""


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, after those of the page that it continues."""
    text = page.read_text(encoding="utf-8")
    if page.name in CONTINUED:
        name, heading = CONTINUED[page.name]
        text = page.with_name(name).read_text(encoding="utf-8").partition(heading)[0] + text
    return blocks_of(text)


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
        follow(blocks(page), Reader(tmp_path, printed))
