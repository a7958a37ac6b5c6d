"""Names that become file names: corpora and checkpoint prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.errors import ConfigError

NO_NAMES = ["", ".", "..", "...", "a/b", "../../evil", "/", "a/", "a\\b", "a\nb", "x" * 161, "é" * 81]
NAMES = ["a", ".a", "a.b", "wmt 24", "新闻", "x" * 160]
WITH_CORPORA = [
    "onmt_llm_train",
    "onmt_llm_launch",
    "onmt_llm_data",
    "onmt_llm_build_vocab",
    "onmt_llm_eval_run",
    "release_model",
]


def read(command: str, folder: Path, content: object) -> None:
    (folder / "x.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    load_job(command, ["-config", str(folder / "x.yaml")])


@pytest.mark.parametrize("command", WITH_CORPORA)
def test_corpora_cannot_leave_their_folder(command: str, tmp_path: Path) -> None:
    for name in NAMES:
        read(command, tmp_path, {"data": {name: {"path_src": "x"}}})
    for name in NO_NAMES:
        with pytest.raises(ConfigError, match=r"x\.yaml:\d+  'data' must give corpora names that are valid file names"):
            read(command, tmp_path, {"data": {"ok": {"path_src": "x"}, name: {"path_src": "x"}}})


def test_every_command_with_corpora_is_looked_at() -> None:
    assert {name for name, job in JOBS.items() if "corpora" in job.section.model_fields} == {*WITH_CORPORA}


def test_checkpoints_begin_with_a_name(tmp_path: Path) -> None:
    for name in NAMES:
        read("onmt_llm_train", tmp_path, {"save_model": name})
        read("onmt_llm_train", tmp_path, {"save_model": f"../run/{name}"})
    for name in set(NO_NAMES) - {"a/b", "../../evil"}:
        for prefix in (name, f"run/{name}"):
            with pytest.raises(ConfigError, match=r"x\.yaml:1  'save_model' must end in a name"):
                read("onmt_llm_train", tmp_path, {"save_model": prefix})
