"""Adapters, block expansion, terms of the loss, quantised base weights and validation: options that need each other."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.learning import (
    ExpansionConfig,
    LoraConfig,
    LossConfig,
    PreferenceConfig,
    QuantizationConfig,
    ValidationConfig,
)


def test_adapters_are_requested_by_their_layers() -> None:
    assert LoraConfig(lora_layers=["q_proj"]).is_on and LoraConfig(lora_embedding=True).is_on
    assert not LoraConfig(lora_rank=8).is_on


def test_block_expansion_is_requested_by_its_blocks() -> None:
    assert ExpansionConfig(expand_every=4).is_on and ExpansionConfig(expand_blocks=[0]).is_on
    assert not ExpansionConfig(expand_type="stack").is_on


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"expand_every": 2, "expand_blocks": [1]}, "expand_every and expand_blocks must not both be given"),
        ({"expand_blocks": [1, 1]}, "expand_blocks must name each once, but is 1, 1"),
        ({"expand_stacks": ["decoder", "decoder"]}, "expand_stacks must name each once"),
        ({"expand_stacks": []}, "expand_stacks must name encoder, decoder or both, but is empty"),
        ({"expand_type": "stack", "expand_lerp": 0.5}, "expand_lerp needs expand_type: concat"),
    ],
)
def test_contradictory_expansions_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ExpansionConfig.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (LossConfig, {"lm_prior_lambda": 0.5}, "lm_prior_lambda needs lm_prior_model"),
        (LossConfig, {"lm_prior_model": "lm"}, "lm_prior_model needs lm_prior_lambda"),
        (PreferenceConfig, {"dpo_label_smoothing": 0.1}, "dpo_label_smoothing needs dpo_loss: robust"),
    ],
)
def test_terms_of_the_loss_are_not_left_out_silently(kind: Any, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**values)
    assert LossConfig(lm_prior_model="lm", lm_prior_lambda=0).lm_prior_lambda == 0


def test_layers_to_quantise_without_a_type_are_bitsandbytes_int8() -> None:
    assert QuantizationConfig(quant_layers=["q_proj"]).resolved_type == "bnb_8bit"
    assert QuantizationConfig().resolved_type == ""
    assert QuantizationConfig(quant_type="int8").resolved_type == "int8"


@pytest.mark.parametrize(("kind", "named"), [("bnb_NF4", "bnb_NF4"), ("", "not set")])
def test_only_int8_weights_are_multiplied_in_int8(kind: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"needs quant_type: int8, but quant_type is {named}"):
        QuantizationConfig.model_validate({"quant_compute": "int8", "quant_type": kind})


def test_names_of_metrics_are_upper_case_and_unique() -> None:
    config = ValidationConfig(valid_metrics=["bleu", "BLEU", "Chrf"], early_stopping_criteria=["chrf", "ppl", "CHRF"])
    assert config.valid_metrics == ["BLEU", "CHRF"] and config.early_stopping_criteria == ["CHRF", "ppl"]


@pytest.mark.parametrize(
    ("criteria", "sentence"),
    [
        ([], "must name at least one criterion, but is empty"),
        (["ppl", "bleu"], "must be ppl, accuracy, loss, reward_accuracy or among valid_metrics, but is BLEU"),
    ],
)
def test_criteria_must_be_measured(criteria: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ValidationConfig(early_stopping_criteria=criteria)
