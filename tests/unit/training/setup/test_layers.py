"""Which layers a run adapts, expands or quantises, and combinations that are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onmt_llm.config.checkpoint import AdapterSpec, ExpansionSpec
from onmt_llm.errors import ConfigError
from onmt_llm.training.setup.layers import LayerPlan, resolve_layers
from options import train_config

STORED = AdapterSpec(
    rank=4, alpha=8, layers=["q_proj"], embedding=False, base="b", base_fingerprint="", quant_layers=["k_proj"],
    quant_type="int8",
)  # fmt: skip


def resolve(
    options: dict[str, Any],
    stored: AdapterSpec | None = None,
    expansion: ExpansionSpec | None = None,
    *,
    gated: bool = True,
) -> LayerPlan:
    adapter: Any = stored and SimpleNamespace(path=Path("stored"), config=SimpleNamespace(adapter=stored))
    return resolve_layers(train_config({"run": options}), gated=gated, adapter=adapter, expansion=expansion)


def test_without_options_the_whole_model_is_trained() -> None:
    plan = resolve({})
    assert (plan.lora, plan.expansion, plan.quantised, plan.beside_base) == (None, None, (), None)
    assert plan.twins is None and plan.new_blocks == []


@pytest.mark.parametrize(("gated", "name"), [(True, "gate_proj"), (False, "up_proj")])
def test_opennmt_names_of_layers_are_translated(gated: bool, name: str) -> None:
    options = {"lora_layers": ["linear_query", "w_1"], "lora_rank": 3, "lora_alpha": 6, "lora_rank_pattern": {"w_1": 1}}
    plan = resolve(options, gated=gated)
    assert plan.lora is not None and plan.lora.layers == ["q_proj", name]
    assert (plan.lora.rank, plan.lora.alpha, plan.lora.rank_pattern) == (3, 6, {name: 1})
    assert plan.beside_base is plan.lora


def test_quantised_layers_go_with_an_adapter() -> None:
    quant = {"quant_layers": ["linear_keys"], "quant_type": "int8"}
    plan = resolve({"lora_layers": ["q_proj"], **quant})
    assert (plan.quantised, plan.quant_type) == (("k_proj",), "int8")
    assert plan.lora is not None and plan.lora.quant_layers == ["k_proj"]
    with pytest.raises(ConfigError, match=r"quant_layers needs LoRA or expand_type: concat.*k_proj"):
        resolve(quant)


def test_loftq_needs_quantised_layers() -> None:
    with pytest.raises(ConfigError, match="lora_init: loftq needs quant_layers") as error:
        resolve({"lora_layers": ["q_proj"], "lora_init": "loftq"})
    assert "pissa" in str(error.value.hint)


@pytest.mark.parametrize("stack", ["freeze_encoder", "freeze_decoder"])
def test_frozen_stacks_do_not_go_with_adapters(stack: str) -> None:
    with pytest.raises(ConfigError, match="freeze_encoder and freeze_decoder must be off with LoRA"):
        resolve({"lora_layers": ["q_proj"], stack: True})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lora_rank": 16, "use_dora": True}, "lora_rank and use_dora must come with lora_layers or lora_embedding"),
        ({"loraplus_lr_ratio": 16.0}, "loraplus_lr_ratio must come with lora_layers or lora_embedding"),
        ({"expand_type": "stack"}, "expand_type must come with expand_every or expand_blocks"),
    ],
)
def test_settings_of_adapters_and_new_blocks_need_some(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        resolve(options)
    assert resolve({**options, "lora_layers": [], "expand_every": 0}).beside_base is None  # switched off on purpose


def test_a_stored_adapter_continues_as_it_is() -> None:
    plan = resolve({}, STORED)
    assert plan.lora == STORED and (plan.quantised, plan.quant_type) == (("k_proj",), "int8")
    plan = resolve({"lora_rank": 4, "lora_dropout": 0.25}, STORED)
    assert plan.lora == STORED.model_copy(update={"dropout": 0.25})


def test_options_that_differ_from_a_stored_adapter_are_named_together() -> None:
    with pytest.raises(ConfigError, match="continues the adapter stored as it is") as error:
        resolve({"lora_rank": 2, "lora_alpha": 1, "lora_layers": ["q_proj"]}, STORED)
    assert "lora_rank is 2 in the options and 4 in the adapter" in error.value.message
    assert "lora_alpha is 1" in error.value.message and "lora_layers" not in error.value.message


def test_expanded_blocks_do_not_go_with_a_new_adapter() -> None:
    expansion = ExpansionSpec(type="stack", blocks=["decoder.layers.1"], base="", base_fingerprint="")
    with pytest.raises(ConfigError, match="lora_layers and lora_embedding must be left out"):
        resolve({"lora_layers": ["q_proj"]}, expansion=expansion)
    plan = resolve({}, expansion=expansion)
    assert plan.expansion is not None and plan.twins is None and plan.beside_base is None and plan.new_blocks
