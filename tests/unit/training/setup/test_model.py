"""Which parameters a run trains."""

from __future__ import annotations

import pytest

import tiny
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.errors import ConfigError
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.model import add_trainable_parts, count_parameters, freeze_stacks
from options import train_config

ADAPTER = AdapterSpec(rank=2, alpha=4, layers=["q_proj"], embedding=False, base="", base_fingerprint="")


def trained(model: Transformer) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_by_default_everything_is_trained() -> None:
    model = tiny.build(tiny.llama()).requires_grad_(False)
    add_trainable_parts(model, train_config({}), LayerPlan())
    total, trainable = count_parameters(model)
    assert total == trainable == sum(parameter.numel() for parameter in model.parameters())


def test_with_lora_only_the_adapters_are_trained() -> None:
    model = tiny.build(tiny.llama())
    add_trainable_parts(model, train_config({}), LayerPlan(ADAPTER))
    assert len(trained(model)) == 4 and all(
        name.endswith(("q_proj.lora_a", "q_proj.lora_b")) for name in trained(model)
    )
    assert count_parameters(model)[1] == 2 * 2 * (32 + 32)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_frozen_stack_keeps_its_embeddings_trained(stack: str) -> None:
    model = tiny.build(tiny.seq2seq())
    freeze_stacks(model, encoder=stack == "encoder", decoder=stack == "decoder")
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    assert frozen and all(name.startswith((f"{stack}.layers.", f"{stack}.norm.")) for name in frozen)
    assert f"{stack}.embed_tokens.weight" in trained(model)


def test_a_stack_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(ConfigError, match="freeze_encoder needs a model with an encoder, but it has encoder_layers: 0"):
        freeze_stacks(tiny.build(tiny.llama()), encoder=True, decoder=False)
