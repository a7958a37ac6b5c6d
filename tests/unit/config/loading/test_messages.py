"""Values as the schema needs them, and pydantic's errors as sentences."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from onmt_llm.config.loading.messages import coerce, contains_nul, explain, field_names, shown
from onmt_llm.config.section import options_of
from onmt_llm.config.train import TrainConfig

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
    assert "theta" in field_names(TABLE["rope"]) and "path_src" in field_names(TABLE["data"])
    assert field_names(TABLE["seed"]) == []


def test_values_are_shown_as_in_yaml_and_truncated() -> None:
    assert shown([True, None, {"a": "b"}]) == "[true, null, {a: 'b'}]"
    assert len(shown("x" * 1000)) == 63


def test_nul_is_found_anywhere() -> None:
    assert contains_nul({"a": [{"b\0": 1}]}) and contains_nul(["a", "\0"]) and not contains_nul({"a": [1, "0"]})
