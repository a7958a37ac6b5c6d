"""Checks of training options that depend on others."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

import tiny
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.config.learning import PreferenceConfig
from onmt_llm.errors import ConfigError
from onmt_llm.training.checks import check_in_backward, check_reference, check_tensor_parallel, check_validation
from options import train_config

CORPORA = {"train": {"path_src": "x", "path_tgt": "y"}, "valid": {"path_src": "x", "path_tgt": "y"}}


@pytest.mark.parametrize(
    "options",
    [{"valid_metrics": ["BLEU"]}, {"early_stopping": 3}, {"save_best": True, "valid_time": "1h"}],
    ids=" and ".join,
)
def test_validation_needs_a_corpus(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{' and '.join(options)} must have a corpus named `valid`"):
        check_validation(train_config({"run": options}))
    scorers = check_validation(train_config({"run": options, "corpora": {"data": CORPORA}}))
    assert [scorer.name for scorer in scorers] == options.get("valid_metrics", [])


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


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ({"heads": 3, "hidden_size": 48, "kv_heads": 3}, {}, "heads is 3, which 2 does not divide; kv_heads is 3"),
        ({"ffn_size": 25}, {}, "ffn_size is 25"),
        ({"moe": {"experts": 4, "expert_size": 15}}, {}, "moe.expert_size is 15"),
        ({"moe": {"experts": 4, "shared_size": 5}}, {}, "moe.shared_size is 5"),
        ({"position": "alibi"}, {}, "position: alibi"),
        ({}, {"performance": {"compile_blocks": True}}, "compile_blocks"),
        ({}, {"optimizer": {"optim": "muon"}}, "optim: muon"),
        ({}, {"devices": {"world_size": 3}}, "world_size is 3, which 2 does not divide"),
    ],
)
def test_what_blocks_that_several_processes_compute_need(
    model: dict[str, Any], options: dict[str, Any], named: str
) -> None:
    config = train_config({**options, "devices": {"world_size": 4, "tensor_parallel": 2, **options.get("devices", {})}})
    with pytest.raises(ConfigError, match=f"tensor_parallel must fit the model and the run, but .*{named}"):
        check_tensor_parallel(config, tiny.llama(**model), config.devices.world_size)


@pytest.mark.parametrize(
    ("adapter", "objective", "quant_type", "named"),
    [
        ({"dora": True}, "sft", "", "use_dora"),
        ({"init": "pissa"}, "dpo", "", "lora_init: pissa with objective: dpo"),
        ({"init": "pissa"}, "sft", "", ""),
        ({}, "dpo", "int8", ""),
        ({}, "sft", "bnb_NF4", "quant_type: bnb_NF4"),
    ],
)
def test_which_adapters_several_processes_compute_together(
    adapter: dict[str, Any], objective: str, quant_type: str, named: str
) -> None:
    config = train_config({"devices": {"world_size": 4, "tensor_parallel": 2}, "corpora": {"objective": objective}})
    spec = AdapterSpec(rank=2, alpha=4.0, layers=["q_proj"], base="base", base_fingerprint="", **adapter)
    # All of its experts are sharded, and ffn_size belongs to none of its layers.
    model = tiny.llama(ffn_size=25, qk_norm=True, moe={"experts": 4, "expert_size": 16})
    with pytest.raises(ConfigError, match=named) if named else nullcontext():
        check_tensor_parallel(config, model, 4, adapter=spec, quant_type=quant_type)
