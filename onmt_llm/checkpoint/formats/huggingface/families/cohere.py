"""Cohere: parallel sub-layers with one LayerNorm without a bias, interleaved rotary positions, scaled logits.

Cohere 2 has a sliding window and rotary positions in three of four layers, and neither in the fourth.
"""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import interleaved, llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    activation,
    always,
    heads,
    must_be,
    scale,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import rotary_within_windows, windows
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary

ROWS = (
    *llama.SIZES,
    setting("tie_embeddings", "tie_word_embeddings", default=True),
    activation("hidden_act", "silu"),
    setting("norm_eps", "layer_norm_eps", default=1e-5),
    setting("max_position", "max_position_embeddings", default=8192),
    setting("attn_bias attn_out_bias", "attention_bias", default=False),
    scale("logit_scale", "logit_scale", default=0.0625),
    always(norm="layernorm", norm_bias=False, parallel_residual=True, shared_norm=True, ffn_gated=True),
)
COHERE = Family(
    "cohere",
    "CohereForCausalLM",
    (
        *ROWS,
        heads(kv="num_key_value_heads", head_dim="head_dim"),
        rotary(default_theta=500000.0),
        must_be(use_qk_norm=False),
    ),
    interleaved.rules,
    llama.IGNORE,
    models="Command R, Aya 23",
    harmless=("model_max_length",),
)
COHERE2 = Family(
    "cohere2",
    "Cohere2ForCausalLM",
    (
        *ROWS,
        heads(kv="num_key_value_heads"),
        rotary(),
        windows(every=4),
        rotary_within_windows(every=4),
        must_be(rotary_pct=1.0, position_embedding_type="rope_gptj", use_embedding_sharing=True),
        must_be(use_gated_activation=True, use_parallel_block=True, order_of_interleaved_layers="local_attn_first"),
    ),
    interleaved.rules,
    llama.IGNORE,
    models="Command R7B, Command A",
    harmless=("head_dim", "layer_switch", "use_parallel_embedding"),  # transformers reads none of them
)
