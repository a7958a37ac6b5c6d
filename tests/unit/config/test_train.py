"""Training options: checks across sections, and what is derived from them."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.train import TrainConfig
from options import train_config

Sections = dict[str, dict[str, Any]]

CONFLICTS: dict[str, tuple[Sections, str]] = {
    "smoothing in preference optimisation": (
        {"corpora": {"objective": "dpo"}, "optimizer": {"label_smoothing": 0.1}, "loss": {"lambda_align": 1.0}},
        "label_smoothing and lambda_align must be left out with objective: dpo",
    ),
    "rewards without preferences": (
        {"validation": {"early_stopping_criteria": ["reward_accuracy"]}},
        "early_stopping_criteria reward_accuracy must go with objective: dpo, orpo or kto",
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
    "a start that nothing asks for": (
        {"start": {"init_from": "base"}},
        "init_from must go with train_from: auto, but that is not given",
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
