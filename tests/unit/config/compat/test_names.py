"""OpenNMT-py's names of layers."""

from __future__ import annotations

from onmt_llm.config.compat.names import layer_name


def test_layer_names_of_opennmt() -> None:
    assert layer_name("w_1", gated=True) == "gate_proj" and layer_name("w_1", gated=False) == "up_proj"
    assert layer_name("context_attn.linear_query", gated=True) == "cross_attn.q_proj"
    assert layer_name("lm_head", gated=True) == "lm_head"
