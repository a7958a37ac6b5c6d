"""Finding a checkpoint: with or without `.pt`, and what is there instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.checkpoint.paths import resolve_path
from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.errors import CheckpointError


@pytest.mark.parametrize("written", ["model", "model.pt"])
@pytest.mark.parametrize("asked", ["model", "model.pt"])
def test_both_spellings_name_the_directory(tmp_path: Path, written: str, asked: str) -> None:
    (tmp_path / written).mkdir()
    (tmp_path / written / CONFIG_FILE).write_text("")
    assert resolve_path(tmp_path / asked) == resolve_path(str(tmp_path / asked)) == tmp_path / written


@pytest.mark.parametrize(
    ("file", "asked", "problem", "hint"),
    [
        (None, "none", "There is no checkpoint at", None),
        ("opennmt.pt", "opennmt", "opennmt.pt is a file", "onmt_llm_convert -from auto"),
        ("opennmt.pt", "opennmt.pt", "opennmt.pt is a file", "onmt_llm_convert -from auto"),
        ("peft/adapter_config.json", "peft", "is a peft adapter", "onmt_llm_lora -action import"),
        ("other/config.json", "other", "must hold config.yaml", "onmt_llm_convert -model_dir"),
    ],
)
def test_something_else_is_named_with_what_to_do(
    tmp_path: Path, file: str | None, asked: str, problem: str, hint: str | None
) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=problem) as error:
        resolve_path(tmp_path / asked)
    assert (error.value.hint is None) if hint is None else hint in str(error.value.hint)


def test_an_address_must_be_downloaded_first() -> None:
    with pytest.raises(CheckpointError, match=r"https://example\.org/model is a URL") as error:
        resolve_path("https://example.org/model")
    assert error.value.hint == "download it first"
