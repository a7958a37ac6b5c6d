"""Llama and its relatives: Mistral (sliding window), Qwen2 (biases on q, k, v), Qwen3 (norms of q and k),
SmolLM3 (layers without rotary positions), Granite (factors)."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    activation,
    always,
    heads,
    must_be,
    scale,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import (
    rotary_layers,
    window,
    window_of_qwen,
    windows_without_rotary,
)
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.names import decoder_rules
from onmt_llm.checkpoint.formats.rules import Rule, overridden, per_layer
from onmt_llm.config.model import ModelConfig

RULES = decoder_rules("hf")
"""The names of all modules that a relative of Llama may have; a model uses those of its own."""

IGNORE = ("*.rotary_emb.inv_freq",)

SIZES = (
    setting("decoder_layers", "num_hidden_layers"),
    setting("vocab_size", "vocab_size"),
    setting("ffn_size", "intermediate_size"),
    setting("tie_embeddings", "tie_word_embeddings", default=False),
)
LLAMA_ROWS = (
    *SIZES,
    heads(kv="num_key_value_heads", head_dim="head_dim"),
    activation("hidden_act", "silu"),
    setting("norm_eps", "rms_norm_eps", default=1e-6),
    setting("max_position", "max_position_embeddings", default=2048),
    rotary(),
    always(norm="rmsnorm", ffn_gated=True),
)


def rules(config: ModelConfig) -> list[Rule]:
    return per_layer(RULES, config.decoder_layers)


def rules_but(*others: Rule) -> list[Rule]:
    """Llama's rules, with `others` in place of those for the same tensors of ours; `{i}` is not filled in."""
    return overridden(RULES, others)


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    (
        *LLAMA_ROWS,
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        setting("ffn_bias", "mlp_bias", default=False),
        must_be(rope_interleaved=False),
    ),
    rules,
    IGNORE,
    models="Llama 1-3, Vicuna, SmolLM2, TinyLlama, Yi, Falcon 3",
    harmless=("max_sequence_length", "is_llama_config"),
)
MISTRAL = Family(
    "mistral", "MistralForCausalLM", (*LLAMA_ROWS, window(default=4096)), rules, IGNORE, models="Mistral 7B, Zephyr"
)
QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    (*LLAMA_ROWS, always(attn_bias=True), window_of_qwen()),
    rules,
    IGNORE,
    models="Qwen 1.5, 2, 2.5",
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    (
        *LLAMA_ROWS,
        heads(kv="num_key_value_heads", head_dim="head_dim", default=128),
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        always(qk_norm=True),
        window_of_qwen(),
    ),
    rules,
    IGNORE,
    models="Qwen 3, dense",
)
SMOLLM3 = Family(
    "smollm3",
    "SmolLM3ForCausalLM",
    (
        *LLAMA_ROWS,
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        setting("ffn_bias", "mlp_bias", default=False),
        setting("max_position", "max_position_embeddings", default=32768),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        rotary(default_theta=2000000.0),
        rotary_layers(),
        windows_without_rotary(),
    ),
    rules,
    IGNORE,
    models="SmolLM3",
    harmless=("max_window_layers",),
)
GRANITE = Family(
    "granite",
    "GraniteForCausalLM",
    (
        *LLAMA_ROWS,
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        setting("ffn_bias", "mlp_bias", default=False),
        scale("embedding_scale", "embedding_multiplier"),
        scale("attention_scale", "attention_multiplier"),
        setting("residual_scale", "residual_multiplier", default=1.0),
        scale("logit_scale", "logits_scaling", inverse=True),
    ),
    rules,
    IGNORE,
    models="Granite 3, dense",
)
