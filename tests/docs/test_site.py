"""The index leads to every page, the API reference holds every public name, and the site can be built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onmt_llm

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MKDOCS = shutil.which("mkdocs", path=f"{ROOT / '.venv-site/bin'}:{Path(sys.executable).parent}")


def linked(page: Path) -> set[Path]:
    """The documents to which a document links."""
    targets = re.findall(r"\]\(([^)\s#:]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets}


def test_every_page_is_two_links_from_the_index() -> None:
    first = linked(DOCS / "README.md")
    second = first.union(*(linked(page) for page in first))
    pages = {path.resolve() for path in [*DOCS.rglob("*.md"), *ROOT.glob("recipes/*/README.md")]}
    assert pages - second - {DOCS.resolve() / "README.md"} == set(), "link them in docs/README.md"


def test_the_api_reference_holds_every_public_name() -> None:
    text = (DOCS / "reference/api.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: onmt_llm\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(names) == sorted(name for name in onmt_llm.__all__ if name != "__version__")


@pytest.mark.slow
@pytest.mark.skipif(MKDOCS is None, reason="mkdocs is not installed (`make site` installs it)")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [str(MKDOCS), "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING -" not in done.stderr, done.stderr
    api = (tmp_path / "reference/api.html").read_text(encoding="utf-8")
    assert all(f'id="onmt_llm.{name}"' in api for name in onmt_llm.__all__ if name != "__version__")
    loaded = [
        each
        for page in tmp_path.rglob("*.html")
        for each in re.findall(r'(?:src|<link[^>]* href)="(http[^"]+)', page.read_text())
    ]
    assert not loaded, "the site needs the network"
