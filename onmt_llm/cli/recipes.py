"""`onmt_llm recipes [DIRECTORY]`: write the recipes that come with the package to `DIRECTORY/recipes`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from onmt_llm.atomic import AtomicDirectory
from onmt_llm.cli.run import run
from onmt_llm.config.loading.help import rows, width
from onmt_llm.errors import CheckpointError, ConfigError

NAME = "recipes"
"""Name of the folder that is written. The paths in the recipes begin with it."""


def main(argv: Sequence[str] | None = None) -> int:
    return run(_write, argv)


def _write(words: Sequence[str]) -> int:
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise ConfigError(
            f"The arguments of onmt_llm recipes must be one directory, but are '{' '.join(words)}'.",
            hint="onmt_llm recipes [DIRECTORY]",
        )
    output = Path(*words, NAME)
    if output.exists():
        raise CheckpointError(
            f"The output {output} exists already.", hint="name another directory: onmt_llm recipes DIRECTORY"
        )
    with AtomicDirectory(output) as target, target.translated_errors():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_source(), target.directory, dirs_exist_ok=True, copy_function=shutil.copyfile, ignore=ignored)
    pages = sorted(output.glob("*/README.md"))
    print("\n".join(rows(((str(page), _title(page)) for page in pages), width())))
    return 0


def _source() -> Path:
    """The recipes: in the installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / NAME, package.parent / NAME) if folder.is_dir())


def _title(page: Path) -> str:
    match = re.search(r"^# (.+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    raise SystemExit(main())
