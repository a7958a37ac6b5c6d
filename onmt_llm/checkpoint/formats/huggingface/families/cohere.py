"""Cohere: parallel sub-layers with one LayerNorm without a bias, interleaved rotary positions, scaled logits.

Command R+ also normalises q and k, head by head.
Cohere 2 has a sliding window and rotary positions in three of four layers, and neither in the fourth.
"""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families import interleaved, llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    heads,
    must_be,
    scale,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import rotary_within_windows, windows
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import Chain, InterleavedRotary, Reshape
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

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


def _head_norms() -> Row:
    """`use_qk_norm`: LayerNorm of each head."""

    def read(hf: HfConfig) -> Values:
        is_on = bool(hf.get("use_qk_norm", False))
        return {"qk_norm": is_on, "qk_norm_type": "layernorm" if is_on else "rmsnorm"}

    layernorm = where(lambda config: not config.qk_norm or config.qk_norm_type == "layernorm")
    checks = {**anything("qk_norm"), "qk_norm_type": layernorm}
    return Row(("use_qk_norm",), read, lambda config: {"use_qk_norm": config.qk_norm}, checks)


def rules(config: ModelConfig) -> list[Rule]:
    """The norms of q and k have weights of each head (N, H), in the order of its rotary pairs."""
    norms = [
        rule(
            f"decoder.layers.{{i}}.self_attn.{name}_norm.weight",
            f"model.layers.{{i}}.self_attn.{name}_norm.weight",
            Chain((Reshape((heads, size), (heads * size,)), InterleavedRotary(size, config.rotary_size))),
        )
        for size in [config.size_per_head]
        for name, heads in (("q", config.heads), ("k", config.num_kv_heads))
    ]
    rotated = interleaved.rotated_rules(config)
    return per_layer(llama.rules_but(*rotated, *norms), config.decoder_layers)


COHERE = Family(
    "cohere",
    "CohereForCausalLM",
    (
        *ROWS,
        heads(kv="num_key_value_heads", head_dim="head_dim"),
        rotary(default_theta=500000.0),
        _head_norms(),
    ),
    rules,
    llama.IGNORE,
    models="Command R, Command R+, Aya 23",
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
