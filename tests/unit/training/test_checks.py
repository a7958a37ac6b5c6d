"""Checks of training options that depend on others."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.learning import PreferenceConfig, ValidationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.training.checks import check_in_backward, check_reference, check_validation
from options import train_config

CORPORA = {"valid": CorpusConfig(path_src="x", path_tgt="y")}


@pytest.mark.parametrize(
    ("options", "name"), [({"valid_metrics": ["BLEU"]}, "valid_metrics"), ({"early_stopping": 3}, "early_stopping")]
)
def test_validation_needs_a_corpus(options: dict[str, Any], name: str) -> None:
    settings = ValidationConfig(**options)
    with pytest.raises(ConfigError, match=f"{name} needs? a corpus named `valid`"):
        check_validation(settings, {})
    assert [scorer.name for scorer in check_validation(settings, CORPORA)] == settings.valid_metrics


def test_updates_in_the_backward_pass_refuse_all_obstacles_together() -> None:
    run = {"optimizer_in_backward": True, "accum_count": [2], "model_dtype": "fp16"}
    config = train_config({"run": run, "optimizer": {"max_grad_norm": 1.5}})
    with pytest.raises(ConfigError) as error:
        check_in_backward(config, world_size=2)
    for obstacle in ("accum_count is [2]", "max_grad_norm is 1.5", "model_dtype is fp16", "2 processes"):
        assert obstacle in error.value.message
    fine = train_config({"run": {"optimizer_in_backward": True}, "optimizer": {"max_grad_norm": 0}})
    check_in_backward(fine, world_size=1)
    check_in_backward(train_config({"run": {"accum_count": [2]}}), world_size=2)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_preference_loss_of_a_whole_model_needs_a_reference(objective: str) -> None:
    with pytest.raises(ConfigError, match=f"objective: {objective} must have a reference model"):
        check_reference(objective, PreferenceConfig(), adapters=False)
    check_reference(objective, PreferenceConfig(), adapters=True)
    check_reference(objective, PreferenceConfig(reference_model="base"), adapters=False)
    check_reference("orpo", PreferenceConfig(), adapters=False)
