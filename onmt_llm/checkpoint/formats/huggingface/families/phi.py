"""Phi-1, Phi-2 (parallel sub-layers with one norm, biases everywhere); Phi-3, Phi-4 (Llama with fused matrices)."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    QKV,
    Family,
    activation,
    always,
    block,
    fused,
    heads,
    modules,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import window
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import SplitRows
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

PHI_NAMES = {"self_attn.o_proj": "self_attn.dense", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}


def phi_rules(config: ModelConfig) -> list[Rule]:
    others = [*modules({"decoder.norm": "model.final_layernorm"}), *block("model.layers", PHI_NAMES)]
    return per_layer(llama.rules_but(*others), config.decoder_layers)


def phi3_rules(config: ModelConfig) -> list[Rule]:
    """q, k and v are one matrix, and so are the two of the gated layer."""
    query, key = config.heads * config.size_per_head, config.num_kv_heads * config.size_per_head
    qkv = fused("model.layers", "self_attn.qkv_proj", QKV, SplitRows((query, key, key)))
    return per_layer(llama.rules_but(*qkv, *gated_rules(config)), config.decoder_layers)


def gated_rules(config: ModelConfig) -> list[Rule]:
    """The two matrices of the gated layer, which are one."""
    split = SplitRows((config.ffn_size, config.ffn_size))
    return fused("model.layers", "mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj"), split)


PHI = Family(
    "phi",
    "PhiForCausalLM",
    (
        *llama.SIZES,
        heads(kv="num_key_value_heads"),
        activation("hidden_act", "gelu_new"),
        setting("norm_eps", "layer_norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=2048),
        rotary(fraction="partial_rotary_factor", default=0.5),
        always(parallel_residual=True, shared_norm=True),
        always(attn_bias=True, attn_out_bias=True, ffn_bias=True, lm_head_bias=True),
        must_be(qk_layernorm=False),
    ),
    phi_rules,
    llama.IGNORE,
    models="Phi-1, 1.5, 2",
)
PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    (
        *llama.SIZES,
        heads(kv="num_key_value_heads"),
        activation("hidden_act", "silu"),
        setting("norm_eps", "rms_norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=4096),
        rotary(fraction="partial_rotary_factor", original=4096),
        window(),
        always(norm="rmsnorm", ffn_gated=True),
        must_be(attention_bias=False, mlp_bias=False, lm_head_bias=False, full_attn_mod=1, interpolate_factor=1),
    ),
    phi3_rules,
    llama.IGNORE,
    models="Phi-3, Phi-3.5 mini and medium, Phi-4, Phi-4-mini",
)
