"""Replacing layers by name."""

from __future__ import annotations

import pytest
from torch import nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.transformer import Transformer
from onmt_llm.nn.wrap import layer_names, match, replace


@pytest.fixture
def model() -> Transformer:
    return Transformer(
        ModelConfig(vocab_size=9, hidden_size=8, heads=2, ffn_size=8, encoder_layers=1, decoder_layers=2)
    )


def test_names_match_whole_components(model: Transformer) -> None:
    assert match(model, ["cross_attn.q_proj"]) == [f"decoder.layers.{i}.cross_attn.q_proj" for i in range(2)]
    assert len(match(model, ["q_proj"])) == 5
    assert match(model, ["encoder.layers.0.mlp.up_proj", "lm_head"]) == ["encoder.layers.0.mlp.up_proj", "lm_head"]


def test_replace_puts_the_new_module_in_place(model: Transformer) -> None:
    model.eval()
    paths = replace(model, ["down_proj", "lm_head"], lambda module, path: nn.Sequential(module))
    assert len(paths) == 4
    for path in paths:
        assert isinstance(model.get_submodule(path), nn.Sequential)
        assert not model.get_submodule(path).training


def test_names_that_match_nothing_are_all_reported(model: Transformer) -> None:
    with pytest.raises(ConfigError) as error:
        match(model, ["q_proj", "up_prj", "w_9", "_proj"])
    message = str(error.value)
    assert "'up_prj', 'w_9', '_proj' match none" in message
    assert "embed_tokens, q_proj, k_proj, v_proj, o_proj, up_proj, down_proj, lm_head" in message
    assert "did you mean 'up_proj'" in message


def test_layer_names_are_those_of_matrices(model: Transformer) -> None:
    names = layer_names(model)
    assert names == ["embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"]
