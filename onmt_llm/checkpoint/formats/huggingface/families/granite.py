"""Granite 3: Llama with factors of the embeddings, attention scores, sub-layers and logits."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import Family, scale, setting

GRANITE = Family(
    "granite",
    "GraniteForCausalLM",
    (
        *llama.LLAMA_ROWS,
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        setting("ffn_bias", "mlp_bias", default=False),
        scale("embedding_scale", "embedding_multiplier"),
        scale("attention_scale", "attention_multiplier"),
        setting("residual_scale", "residual_multiplier", default=1.0),
        scale("logit_scale", "logits_scaling", inverse=True),
    ),
    llama.rules,
    llama.IGNORE,
    models="Granite 3, dense",
)
