"""Falcon: 7B (multi-query, one shared norm), 40B (grouped, two norms), Falcon-RW (one group per head, ALiBi, biases).

Both old keys (`n_head`, `n_layer`, `n_head_kv`) and current ones are read.
"""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    QKV,
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    block,
    fused,
    modules,
    must_be,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import GroupedQKV
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig


def rules(config: ModelConfig) -> list[Rule]:
    """Weight-name rules; the norms depend on the residual layout."""
    two_norms = config.parallel_residual and not config.shared_norm
    names = {
        "attn_norm": "ln_attn" if two_norms else "input_layernorm",
        "mlp_norm": "ln_mlp" if two_norms else "post_attention_layernorm",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    ends = {
        "decoder.embed_tokens": "transformer.word_embeddings",
        "decoder.norm": "transformer.ln_f",
        "lm_head": "lm_head",
    }
    split = GroupedQKV(config.heads, config.num_kv_heads, config.size_per_head)
    qkv = fused("transformer.h", "self_attention.query_key_value", QKV, split)
    return per_layer([*modules(ends), *block("transformer.h", names), *qkv], config.decoder_layers)


def _read_heads(hf: HfConfig) -> Values:
    """`num_kv_heads` counts only in the grouped layout; elsewhere `multi_query` decides."""
    number, width = int(required(hf, "num_attention_heads", "n_head")), int(required(hf, "hidden_size", "n_embed"))
    if hf.get("new_decoder_architecture", False):
        kv_heads = int(hf.get("num_kv_heads") or hf.get("n_head_kv") or number)
    else:
        kv_heads = 1 if hf.get("multi_query", True) else number
    return {
        "hidden_size": width,
        "heads": number,
        "kv_heads": None if kv_heads == number else kv_heads,
        "ffn_size": hf.get("ffn_hidden_size") or 4 * width,
    }


def _write_heads(config: ModelConfig) -> Values:
    return {
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.heads,
        "num_kv_heads": config.num_kv_heads,
        "multi_query": config.num_kv_heads == 1,
        "ffn_hidden_size": config.ffn_size,
    }


def _read_layout(hf: HfConfig) -> Values:
    grouped = bool(hf.get("new_decoder_architecture", False))
    parallel = grouped or bool(hf.get("parallel_attn", True))
    alibi = bool(hf.get("alibi", False))
    return {
        "parallel_residual": parallel,
        "shared_norm": parallel and not (grouped and (hf.get("num_ln_in_parallel_attn") or 2) == 2),
        "position": "alibi" if alibi else "rotary",
        "alibi_scaled": alibi,
    }


def _write_layout(config: ModelConfig) -> Values:
    grouped = config.parallel_residual and (not config.shared_norm or config.num_kv_heads not in (1, config.heads))
    return {
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": (1 if config.shared_norm else 2) if grouped else None,
        "parallel_attn": config.parallel_residual,
        "alibi": config.position == "alibi",
    }


HEADS = Row(
    (
        "num_attention_heads",
        "n_head",
        "hidden_size",
        "n_embed",
        "num_kv_heads",
        "n_head_kv",
        "multi_query",
        "ffn_hidden_size",
    ),
    _read_heads,
    _write_heads,
    {
        **anything("hidden_size", "heads", "ffn_size"),
        "kv_heads": where(
            lambda config: config.parallel_residual or config.num_kv_heads in (1, config.heads),
            " without parallel_residual",
        ),
    },
)
LAYOUT = Row(
    ("new_decoder_architecture", "parallel_attn", "num_ln_in_parallel_attn", "alibi"),
    _read_layout,
    _write_layout,
    {
        **anything("alibi_scaled", "parallel_residual", "shared_norm"),
        "position": where(
            lambda config: config.position == "rotary" or (config.position == "alibi" and config.alibi_scaled)
        ),
    },
)

FALCON = Family(
    "falcon",
    "FalconForCausalLM",
    (
        setting("decoder_layers", "num_hidden_layers", "n_layer"),
        setting("vocab_size", "vocab_size"),
        HEADS,
        setting("norm_eps", "layer_norm_epsilon", default=1e-5),
        setting("max_position", "max_position_embeddings", default=2048),
        activation("activation", "gelu"),
        setting("attn_bias attn_out_bias ffn_bias", "bias", default=False),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        must_be(apply_residual_connection_post_layernorm=False),
        rotary(),
        LAYOUT,
    ),
    rules,
    ("*.rotary_emb.inv_freq",),
    models="Falcon 7B, 11B, 40B, 180B, RW",
    harmless=("ff_factor",),
)
