"""Write the option reference and the JSON schema from the options' own definitions.

`python docs/generate.py` writes them; `--check` only lists files that are out of date, and then exits with 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onmt_llm.cli.jobs import JOBS
from onmt_llm.commands import COMMANDS
from onmt_llm.config.compat.opennmt_table import option_table, read_options
from onmt_llm.config.loading.render import json_schema, option_tables
from onmt_llm.config.section import options_of

REFERENCE = Path(__file__).parent / "reference"
OPENNMT_OPTIONS = Path(__file__).parents[1] / "tests/data/opennmt_options.txt"


def pages() -> dict[Path, str]:
    """Every generated file and its content."""
    result: dict[Path, str] = {}
    for command, job in JOBS.items():
        about = (
            f"# Options of `{command}`\n\n{_begin(command)}Generated from the schema by `make docs`. Each option is a"
            " YAML key and a flag (`-x v`, `--x v`, `--x=v`); OpenNMT-py's names work too. `-help SECTION` shows a"
            " section, `-help OPTION` one option.\n\n"
        )
        result[REFERENCE / f"{command}.md"] = about + option_tables(job.section, job.extra()) + "\n"
        schema = json.dumps(json_schema(job.section, job.extra()), indent=1, ensure_ascii=False, sort_keys=True)
        result[REFERENCE / f"{command}.schema.json"] = schema + "\n"
    tables = {command: options_of(job.section, job.extra()) for command, job in JOBS.items()}
    options = read_options(OPENNMT_OPTIONS.read_text(encoding="utf-8"))
    result[REFERENCE / "opennmt_options.md"] = option_table(options, tables)
    return result


def _begin(command: str) -> str:
    """What a command does, and examples of its use."""
    if command not in COMMANDS:
        return ""
    entry = COMMANDS[command]
    lines = [f"{command} {line}  # {what}" for line, what in entry.examples]
    return "\n".join([entry.phrase, "", "```shell", *lines, "```", "", ""])


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(Path.cwd())} is out of date: run `make docs`")
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(stale)} of {len(pages())} pages written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
