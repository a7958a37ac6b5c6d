"""Training options: checks across sections, what is derived from them, time limits and the profiler."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.train import SafetyConfig, TrackingConfig, TrainConfig, seconds
from options import train_config

Sections = dict[str, dict[str, Any]]

CONFLICTS: dict[str, tuple[Sections, str]] = {
    "smoothing in preference optimisation": (
        {
            "corpora": {"objective": "dpo"},
            "optimizer": {"label_smoothing": 0.1},
            "loss": {"lambda_align": 1.0, "lambda_balance": 0.1},
        },
        "label_smoothing and lambda_align and lambda_balance must be left out with objective: dpo",
    ),
    "rewards without preferences": (
        {"validation": {"early_stopping_criteria": ["reward_accuracy"]}},
        "early_stopping_criteria reward_accuracy needs objective: dpo, orpo or kto",
    ),
    "adapters and new blocks": (
        {"lora": {"lora_layers": ["q_proj"]}, "expansion": {"expand_every": 2}},
        "expand_every and expand_blocks must be left out with LoRA",
    ),
    "accumulation without its steps": (
        {"run": {"accum_count": [1, 2]}},
        "accum_count and accum_steps must have the same length, but have 2, 1",
    ),
    "dropouts of several lengths": (
        {"regularization": {"dropout": [0.1, 0.2], "dropout_steps": [0, 10]}},
        "dropout and attention_dropout and dropout_steps must have the same length, but have 2, 1, 2",
    ),
    "accumulation that goes back": (
        {"run": {"accum_count": [1, 2, 4], "accum_steps": [0, 20, 10]}},
        r"accum_steps must increase, but is \[0, 20, 10\]",
    ),
    "a schedule without an end": (
        {"corpora": {"epochs": 2}, "optimizer": {"decay_method": "cosine"}},
        "train_steps must be set with epochs and decay_method: cosine",
    ),
    "a start that nothing asks for": (
        {"start": {"init_from": "base"}},
        "init_from needs train_from: auto, but that is not given",
    ),
    "a reset of whatever there is": (
        {"start": {"train_from": "auto", "reset_optim": "all"}},
        "reset_optim must be none with train_from: auto, but is all",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_conflicts_between_sections_are_errors(case: str) -> None:
    sections, sentence = CONFLICTS[case]
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        train_config(sections)


def test_all_conflicts_are_reported_together() -> None:
    first, second = CONFLICTS["adapters and new blocks"], CONFLICTS["accumulation without its steps"]
    with pytest.raises(ValueError) as caught:
        train_config({**first[0], **second[0]})
    assert first[1] in str(caught.value) and second[1] in str(caught.value)


STARTS: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing": ({}, True),
    "a checkpoint": ({"train_from": "c"}, False),
    "the newest of the run": ({"train_from": "auto"}, True),
    "the newest of the run, or a checkpoint": ({"train_from": "auto", "init_from": "c"}, False),
}


@pytest.mark.parametrize("case", STARTS)
def test_whether_the_model_is_new(case: str) -> None:
    start, expected = STARTS[case]
    assert train_config({"start": start}).has_new_model is expected


def test_what_needs_a_trained_model_is_listed() -> None:
    needy = train_config(
        {"lora": {"lora_layers": ["q_proj"]}, "start": {"update_vocab": True}, "architecture": {"decoder_layers": 0}}
        | {"architecture": {"decoder_layers": 0, "encoder_layers": 1}}
    )
    sentences = list(needy.missing_base())
    assert [sentence.split()[0] for sentence in sentences] == ["lora_layers", "update_vocab", "decoder_layers"]
    assert sentences[0].endswith("set train_from")
    assert not list(TrainConfig().missing_base())


def test_every_section_and_every_option_is_documented() -> None:
    for name, info in TrainConfig.model_fields.items():
        kind: Any = info.annotation
        assert kind.__doc__ and kind.__doc__.endswith("."), name
        for option, field in kind.model_fields.items():
            assert field.description and field.description.endswith((".", ")")), option


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1.5s", 1.5), ("45m", 2700), ("11h30m", 41400), ("2d", 172800), ("23:30:00", 84600), ("2:05", 125)],
)
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected == SafetyConfig(max_time=text).max_seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "1x", "-5"])
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time such as 11h30m"):
        SafetyConfig(max_time=text)


def test_a_number_in_yaml_is_a_time_in_seconds() -> None:
    assert SafetyConfig.model_validate({"max_time": 90}).max_seconds == 90
    assert SafetyConfig().max_seconds is None


@pytest.mark.parametrize("steps", [[5], [5, 4], [1, 2, 3]])
def test_the_profiled_steps_are_a_first_and_a_last_one(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="profile_steps must be a first and a last step, but is"):
        TrackingConfig(profile_steps=steps)
    assert TrackingConfig(profile_steps=[4, 4], profile_flops=True).profile_steps == [4, 4]


@pytest.mark.parametrize("values", [{"profile_flops": True}, {"profile_flops": True, "profile_steps": []}])
def test_operations_are_counted_in_profiled_steps_only(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="profile_flops needs profile_steps, but that is empty"):
        TrackingConfig.model_validate(values)
