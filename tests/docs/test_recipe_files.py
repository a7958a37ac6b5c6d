"""Every YAML of the recipes loads without a note, and their data is what their README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onmt_llm.cli.jobs import load_job

RECIPES = Path(__file__).parents[2] / "recipes"
YAMLS = sorted(path for recipe in ("quickstart", "replicate_vicuna") for path in (RECIPES / recipe).glob("*.yaml"))
DATA = RECIPES / "quickstart/data"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_recipes_yaml_loads(path: Path) -> None:
    command = "onmt_llm_translate" if path.name.startswith("translate") else "onmt_llm_train"
    loaded = load_job(command, ["-config", str(path)])
    # Recipes in the names of OpenNMT-py rely on some defaults.
    assert [note for note in loaded.notes if not note.startswith("Options that are not set")] == []


def rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_quickstart_corpus_is_clean() -> None:
    single, valid, chats = rows("train_single.jsonl"), rows("valid.jsonl"), rows("train_chat.jsonl")
    assert (len(single), len(valid), len(chats)) == (340, 40, 62)
    prompts = [row["prompt"] for row in [*single, *valid]]
    assert len(set(prompts)) == len(prompts)
    answers = [str(row["answer"]) for row in [*single, *valid]]
    for chat in chats:
        turns = chat["conversations"]
        assert isinstance(turns, list)
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        answers += [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert all(answer.endswith("Happy trails!") for answer in answers)
    assert not [answer for answer in answers if re.search(r"\s\s|^\s|\\", answer)]


def test_the_quickstart_questions_were_not_trained() -> None:
    questions = (DATA / "questions.txt").read_text(encoding="utf-8").splitlines()
    assert len(questions) == 6
    assert not {row["prompt"] for row in rows("train_single.jsonl")} & set(questions)
