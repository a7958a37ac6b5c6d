"""StableLM: Llama's layers with LayerNorm and rotary positions on a part of each head."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    activation,
    always,
    heads,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary

STABLELM = Family(
    "stablelm",
    "StableLmForCausalLM",
    (
        *llama.SIZES,
        heads(kv="num_key_value_heads"),
        activation("hidden_act", "silu"),
        setting("norm_eps", "layer_norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=4096),
        rotary(fraction="partial_rotary_factor", default=0.25),
        setting("attn_bias", "use_qkv_bias", default=False),
        setting("parallel_residual shared_norm", "use_parallel_residual", default=False),
        must_be(qk_layernorm=False),
        always(norm="layernorm", ffn_gated=True),
    ),
    llama.rules,
    llama.IGNORE,
    models="StableLM 2 1.6B, StableLM 3B",
)
