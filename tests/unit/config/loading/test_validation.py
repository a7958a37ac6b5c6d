"""Values as the schema needs them, options of single corpora, valid parts of sections, and mistakes as sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.config.data import DataConfig
from onmt_llm.config.learning import ExpansionConfig
from onmt_llm.config.loading.validation import (
    coerce,
    contains_nul,
    explain,
    field_names,
    gather_options,
    shown,
    validate_partially,
)
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.section import options_of
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError

TABLE = options_of(TrainConfig)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("dropout", 0.1, [0.1]),
        ("dropout", [0.1], [0.1]),
        ("lora_layers", ["a", 5], ["a", "5"]),
        ("lora_layers", True, [True]),
        ("save_model", 12, "12"),
        ("save_model", True, True),
        ("batch_size", None, 64),
        ("src_vocab", None, None),
        ("seed", "x", "x"),
    ],
)
def test_values_are_coerced_to_their_option(option: str, value: Any, expected: Any) -> None:
    assert coerce(value, TABLE[option]) == expected


EXPLAINED: dict[str, tuple[Any, str]] = {
    "seed": ("1,000", "'seed' must be a whole number, but is '1,000': did you mean 1000?"),
    "batch_size": (0, "'batch_size' must be >= 1, but is 0."),
    "learning_rate": (float("nan"), "'learning_rate' must be a finite number, but is nan."),
    "adam_eps": (2.0, "'adam_eps' must be <= 1, but is 2.0."),
    "tensorboard": ("x", "'tensorboard' must be true or false, but is 'x'."),
    "save_model": ([], "'save_model' must be text, but is []."),
    "lora_layers": ({"a": 1}, "'lora_layers' must be a list, but is {a: 1}."),
    "rope": (5, "'rope' must be a mapping, but is 5."),
    "optim": ("adm", "did you mean 'adam'?"),
    "decay_method": (5, "'decay_method' must be one of none, noam, noamwd, rsqrt, cosine, linear, but is 5."),
    "max_time": ("x", "'max_time' must be a time such as 11h30m, 23:30:00 or 3600 (seconds), but is 'x'."),
}


@pytest.mark.parametrize("option", EXPLAINED)
def test_what_is_wrong_with_a_value_is_one_sentence(option: str) -> None:
    value, expected = EXPLAINED[option]
    kind = TrainConfig.model_fields[TABLE[option].section].annotation
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({option: value})  # type: ignore[union-attr]
    sentence = explain(caught.value.errors()[0], option, TABLE[option], (option,))
    assert sentence.endswith(expected) if expected.startswith("did") else sentence == expected


def test_an_unknown_name_in_a_mapping_is_explained() -> None:
    finding = {"input": 1, "type": "extra_forbidden", "loc": ("rope", "thet")}
    sentence = explain(finding, "rope.thet", TABLE["rope"], ("rope", "thet"))
    assert sentence == "'rope.thet' is not a known option: did you mean 'theta'?"
    finding = {"input": {}, "type": "extra_forbidden", "loc": ("data", "c", "src_feats")}
    sentence = explain(finding, "data.c.src_feats", TABLE["data"], ("data", "c", "src_feats"))
    assert "no longer supported: write the features" in sentence
    assert "theta" in field_names(TABLE["rope"]) and "path_src" in field_names(TABLE["data"])
    assert field_names(TABLE["seed"]) == []


def test_values_are_shown_as_in_yaml_and_truncated() -> None:
    assert shown([True, None, {"a": "b"}]) == "[true, null, {a: 'b'}]"
    assert len(shown("x" * 1000)) == 63


def test_nul_is_found_anywhere() -> None:
    assert contains_nul({"a": [{"b\0": 1}]}) and contains_nul(["a", "\0"]) and not contains_nul({"a": [1, "0"]})


JOB = JOBS["onmt_llm_train"]
WITH_TRANSFORMS = options_of(JOB.section, JOB.extra())


def test_options_among_the_keys_of_a_corpus_move_below_options() -> None:
    corpora = {"a": {"path_src": "x", "src_prefix": "p", "options": {"tgt_prefix": "q"}}, "b": {"path_src": "y"}}
    assert gather_options(corpora, WITH_TRANSFORMS) == {
        "a": {"path_src": "x", "options": {"tgt_prefix": "q", "src_prefix": "p"}},
        "b": {"path_src": "y"},
    }


def test_an_option_that_is_set_twice_has_the_value_beside_the_paths() -> None:
    corpora = {"a": {"src_prefix": "direct", "options": {"src_prefix": "listed"}}}
    assert gather_options(corpora, WITH_TRANSFORMS)["a"]["options"] == {"src_prefix": "direct"}


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": None}, {"a": {"options": 5}}])
def test_other_shapes_are_left_to_the_schema(value: Any) -> None:
    assert gather_options(value, WITH_TRANSFORMS) == value


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


def test_a_valid_section_is_validated_as_usual() -> None:
    assert validate_partially(ModelConfig, {"heads": 4}) == ModelConfig(heads=4)


def test_values_that_are_invalid_by_themselves_are_dropped() -> None:
    section = validate_partially(ModelConfig, {"heads": 0, "kv_heads": 2, "rope": {"theta": -1, "factor": 2}})
    assert isinstance(section, ModelConfig)
    assert (section.heads, section.kv_heads, section.rope.factor) == (8, 2, 2)
    assert section.rope.theta == 10000


def test_a_corpus_loses_only_its_invalid_values() -> None:
    values = {"data": {"a": {"path_src": "x", "weight": -1}, "b": {"path_sr": "y"}}}
    section = validate_partially(DataConfig, values)
    assert isinstance(section, DataConfig)
    assert section.data["a"].path_src == "x" and section.data["a"].weight == 1
    assert section.data["b"].path_src is None
    assert values["data"]["a"]["weight"] == -1, "the user's values are not changed"


def test_values_that_only_conflict_are_kept() -> None:
    section = validate_partially(ExpansionConfig, {"expand_every": 2, "expand_blocks": [1]})
    assert isinstance(section, ExpansionConfig)
    assert (section.expand_every, section.expand_blocks) == (2, [1])
