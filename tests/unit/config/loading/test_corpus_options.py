"""Options of transforms that are set for one corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.config.loading.corpus_options import gather_options
from onmt_llm.config.section import options_of
from onmt_llm.errors import ConfigError

JOB = JOBS["onmt_llm_train"]
TABLE = options_of(JOB.section, JOB.extra())


def test_options_among_the_keys_of_a_corpus_move_below_options() -> None:
    corpora = {"a": {"path_src": "x", "src_prefix": "p", "options": {"tgt_prefix": "q"}}, "b": {"path_src": "y"}}
    assert gather_options(corpora, TABLE) == {
        "a": {"path_src": "x", "options": {"tgt_prefix": "q", "src_prefix": "p"}},
        "b": {"path_src": "y"},
    }


def test_an_option_that_is_set_twice_has_the_value_beside_the_paths() -> None:
    corpora = {"a": {"src_prefix": "direct", "options": {"src_prefix": "listed"}}}
    assert gather_options(corpora, TABLE)["a"]["options"] == {"src_prefix": "direct"}


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": None}, {"a": {"options": 5}}])
def test_other_shapes_are_left_to_the_schema(value: Any) -> None:
    assert gather_options(value, TABLE) == value


def load(tmp_path: Path, text: str) -> Any:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    return load_job("onmt_llm_train", ["-config", str(tmp_path / "x.yaml")])


def test_values_are_coerced(tmp_path: Path) -> None:
    job = load(tmp_path, "data:\n  a: {path_src: x, src_prefix: 5}\n").job
    assert job.corpora.data["a"].options == {"src_prefix": "5"}


WRONG = {
    "a wrong value": ("    src_seq_length: 0\n", r"x\.yaml:4  'data\.a\.src_seq_length' must be >= 1, but is 0\."),
    "a wrong value below options": (
        "    options:\n      src_seq_length: x\n",
        r"x\.yaml:5  'data\.a\.src_seq_length' must be a whole number",
    ),
    "an option of no transform": (
        "    options:\n      src_prefi: x\n",
        r"x\.yaml:5  'data\.a\.src_prefi' is not an option of a transform: did you mean 'src_prefix'\?",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_reported_with_their_line(case: str, tmp_path: Path) -> None:
    text, expected = WRONG[case]
    with pytest.raises(ConfigError, match=expected) as caught:
        load(tmp_path, "data:\n  a:\n    path_src: x\n" + text)
    assert "\n" not in caught.value.message
