"""GPT-NeoX and Pythia: parallel sub-layers with a norm each, rotary positions on a quarter of each head."""

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
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import GroupedQKV
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

NAMES = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
ENDS = {"decoder.embed_tokens": "gpt_neox.embed_in", "decoder.norm": "gpt_neox.final_layer_norm", "lm_head": "lm_head"}


def rules(config: ModelConfig) -> list[Rule]:
    split = GroupedQKV(config.heads, config.heads, config.size_per_head)
    qkv = fused("gpt_neox.layers", "attention.query_key_value", QKV, split)
    return per_layer([*modules(ENDS), *block("gpt_neox.layers", NAMES), *qkv], config.decoder_layers)


GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    (
        *llama.SIZES,
        heads(),
        activation("hidden_act", "gelu"),
        setting("norm_eps", "layer_norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=2048),
        rotary(theta="rotary_emb_base", fraction="rotary_pct", default=0.25),
        setting("parallel_residual", "use_parallel_residual", default=True),
        setting("attn_bias attn_out_bias", "attention_bias", default=True),
        always(ffn_bias=True),
    ),
    rules,
    ("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    models="Pythia, GPT-NeoX 20B",
    older=(("embed_out.", "lm_head."),),
)
