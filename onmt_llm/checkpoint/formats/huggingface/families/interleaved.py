"""Llama's layers with interleaved rotary positions: ERNIE 4.5, Helium, GLM-4."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import Family, activation, always, block, heads, setting
from onmt_llm.checkpoint.formats.huggingface.families.phi import gated_rules
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import InterleavedRotary
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

ROTATED = {"self_attn.q_proj": "self_attn.q_proj", "self_attn.k_proj": "self_attn.k_proj"}


def rotated_rules(config: ModelConfig) -> list[Rule]:
    """q and k, with their rotary pairs in our order."""
    return block("model.layers", ROTATED, InterleavedRotary(config.size_per_head, config.rotary_size))


def rules(config: ModelConfig) -> list[Rule]:
    return per_layer(llama.rules_but(*rotated_rules(config)), config.decoder_layers)


def glm_rules(config: ModelConfig) -> list[Rule]:
    return per_layer(llama.rules_but(*rotated_rules(config), *gated_rules(config)), config.decoder_layers)


HEADS = heads(kv="num_key_value_heads", head_dim="head_dim", default=128)

ERNIE4_5 = Family(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    (
        *llama.LLAMA_ROWS,
        HEADS,
        setting("norm_eps", "rms_norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=131072),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        rotary(default_theta=500000.0),
        setting("attn_bias attn_out_bias ffn_bias", "use_bias", default=False),
    ),
    rules,
    llama.IGNORE,
    models="ERNIE 4.5 0.3B",
)
HELIUM = Family(
    "helium",
    "HeliumForCausalLM",
    (
        *llama.LLAMA_ROWS,
        HEADS,
        setting("norm_eps", "rms_norm_eps", default=1e-8),
        setting("max_position", "max_position_embeddings", default=4096),
        rotary(default_theta=100000.0),
        setting("attn_bias", "attention_bias", default=False),
        setting("ffn_bias", "mlp_bias", default=False),
    ),
    rules,
    llama.IGNORE,
    models="Helium 1",
)
GLM = Family(
    "glm",
    "GlmForCausalLM",
    (
        *llama.SIZES,
        HEADS,
        activation("hidden_act", "silu"),
        setting("norm_eps", "rms_norm_eps", default=1.5625e-07),
        setting("max_position", "max_position_embeddings", default=131072),
        rotary(fraction="partial_rotary_factor", default=0.5),
        setting("attn_bias", "attention_bias", default=True),
        always(norm="rmsnorm", ffn_gated=True),
    ),
    glm_rules,
    llama.IGNORE,
    models="GLM-4 9B, GLM-Edge",
)
