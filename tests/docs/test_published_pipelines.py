"""The table of published pipelines: its commands and options parse, its tests exist, each step has a verdict."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from onmt_llm.cli.jobs import JOBS
from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.loading import flags
from onmt_llm.config.section import options_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/seeds.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("| step", "|---"))
]
WITH_ACTIONS = {
    "onmt_llm_checkpoint",
    "onmt_llm_data",
    "onmt_llm_eval",
    "onmt_llm_hub",
    "onmt_llm_launch",
    "onmt_llm_plot",
}


def test_all_steps_are_there() -> None:
    assert len(ROWS) == 48 and len({row[0] for row in ROWS}) == 48


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_step_names_what_exists(row: list[str]) -> None:
    _, here, verdict, tests = row
    assert verdict == "works" or re.match(r"partly: \S", verdict)
    job = JOBS["onmt_llm_train"]
    training = {*options_of(job.section, job.extra()), *CorpusConfig.model_fields}
    for span in re.findall(r"`([^`]+)`", here):
        name, *words = shlex.split(span.replace("onmt_llm_eval run", "onmt_llm_eval_run"))
        if name in JOBS:
            job = JOBS[name]
            if name in WITH_ACTIONS:
                words = words[next(i for i, word in enumerate(words) if word.startswith("-")) :]
            table = options_of(job.section, job.extra())
            assert not flags.parse(words, table, flags.CommandLine(name, {}, job.short)).problems
        elif found := re.match(r"(\w+): ", span):
            assert found[1] in training, span
    named = re.findall(r"`(tests/[^`]+)`|recipe (\w+)", tests)
    assert named
    for file, recipe in named:
        assert (ROOT / file).is_file() if file else "## On a CPU" in recipe_page(recipe)


def recipe_page(name: str) -> str:
    return (ROOT / "recipes" / name / "README.md").read_text(encoding="utf-8")
