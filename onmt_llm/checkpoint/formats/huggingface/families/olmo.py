"""OLMo 2: Llama with norms of the outputs of sub-layers instead of their inputs, and of q and k over all heads."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import Family, always, block, setting
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

NORMS = {"attn_out_norm": "post_attention_layernorm", "mlp_out_norm": "post_feedforward_layernorm"}


def rules(config: ModelConfig) -> list[Rule]:
    return per_layer(llama.rules_but(*block("model.layers", NORMS)), config.decoder_layers)


OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    (
        *llama.LLAMA_ROWS,
        setting("norm_eps", "rms_norm_eps", default=1e-5),
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        always(norm_position="output", qk_norm=True, qk_norm_over="all_heads"),
    ),
    rules,
    llama.IGNORE,
    models="OLMo 2",
)
