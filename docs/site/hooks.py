"""Hooks of mkdocs: folders in the nav, and pages for the files of the repository that the documents link to.

The documents are written to be read in the repository: they link to files outside docs/, and to programs. On the site,
such a link leads to a page below `repository/` that shows the file, or the names of a folder's files.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHOWN = "repository"
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[#)])")
_CODE = re.compile(r"`[^`]*`")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".slurm": "bash", ".json": "json"}


def on_config(config: Any) -> Any:
    config.nav = _expanded(config.nav)
    return config


def _expanded(nav: Any) -> Any:
    """A nav, or an entry of one, with pages instead of patterns; sections without a page are left out."""
    if isinstance(nav, list):
        return [each for each in map(_expanded, nav) if each]
    if isinstance(nav, dict):
        return {title: pages for title, each in nav.items() if (pages := _expanded(each))}
    return _pages(nav) if "*" in nav else nav


def _pages(pattern: str) -> list[str]:
    """The pages that match a pattern, in the order of docs/README.md; those that it does not name come last."""
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    places = {
        page: index.rfind(f"]({page}") for page in (path.relative_to(DOCS).as_posix() for path in DOCS.glob(pattern))
    }
    pages = sorted(places, key=lambda page: (places[page] < 0, places[page], page))
    return [page for page in pages if not page.endswith("README.md")]


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside docs/, and every program, to which a page links."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    waiting += [ROOT / uri.removeprefix(f"{SHOWN}/") for uri in _leaves(config.nav) if uri.startswith(f"{SHOWN}/")]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        uri = _uri(path)
        if uri.startswith(f"{SHOWN}/"):
            files.append(File.generated(config, uri, content=_content(path), inclusion=InclusionLevel.NOT_IN_NAV))
        new = set(_targets(path)) - seen
        seen |= new
        waiting += new
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page lead to the pages of the site, and read its lists and tables as GitHub does."""
    path = _path(page.file.src_uri)
    if path.suffix != ".md":
        return markdown

    def replaced(match: re.Match[str]) -> str:
        target = _target(path, match[0])
        return os.path.relpath(_uri(target), os.path.dirname(page.file.src_uri)) if target else match[0]

    return _as_on_github(_LINK.sub(replaced, markdown))


def _as_on_github(markdown: str) -> str:
    """Markdown that Python's parser reads as GitHub reads the original.

    A list needs no empty line after a paragraph, and in a table `\\|` is a bar, also in code.
    """
    lines: list[str] = []
    in_code = in_list = False
    for line in markdown.split("\n"):
        begins_item = bool(re.match(r"([-*]|\d+\.) ", line))
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            if begins_item and not in_list and lines and lines[-1]:
                lines.append("")
            in_list = begins_item or (in_list and bool(line))
        is_row = line.startswith("|") and not in_code
        lines.append(_CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if is_row else line)
    return "\n".join(lines)


def _targets(page: Path) -> Iterator[Path]:
    """What a page links to, and is shown on a page of the site."""
    for match in _LINK.finditer(page.read_text(encoding="utf-8") if page.suffix == ".md" else ""):
        if target := _target(page, match[0]):
            yield target


def _target(page: Path, link: str) -> Path | None:
    """The file or folder to which a link leads; None if mkdocs takes care of it."""
    path = Path(os.path.normpath(page.parent / link))
    if path.is_dir() and (path / "README.md").is_file():
        path /= "README.md"
    is_program = path.suffix == ".py" or path.is_dir()
    ours = path.exists() and (is_program or not path.is_relative_to(DOCS) or not page.is_relative_to(DOCS))
    return path if ours else None


def _uri(path: Path) -> str:
    """The source path of the page that shows a file or a folder."""
    if path.is_relative_to(DOCS) and path.is_file() and path.suffix != ".py":
        return path.relative_to(DOCS).as_posix()
    name = f"{SHOWN}/{path.relative_to(ROOT).as_posix()}"
    return name if path.suffix == ".md" else f"{name}.md"


def _path(uri: str) -> Path:
    """The file or folder that a page shows."""
    if not uri.startswith(f"{SHOWN}/"):
        return DOCS / uri
    path = ROOT / uri.removeprefix(f"{SHOWN}/")
    return path if path.exists() else path.with_suffix("")


def _content(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        return title + "".join(f"- `{each.name}`\n" for each in sorted(path.iterdir()) if each.name[0] not in "._")
    return f"{title}``````{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}``````\n"


def _leaves(nav: Any) -> Iterator[str]:
    """The pages of a nav."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(each)
