"""Falcon: 7B (multi-query, one shared norm), 40B (grouped, two norms), Falcon-RW (one group per head, ALiBi, biases).

Both old keys (`n_head`, `n_layer`, `n_head_kv`) and current ones are read.
"""

from __future__ import annotations

from typing import Any

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    HF_ACTIVATIONS,
    SIZES,
    Family,
    HfConfig,
    activation,
    required,
    rope_from_hf,
    rope_to_hf,
)
from onmt_llm.checkpoint.formats.rules import GroupedQKV, Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

ATTN = "decoder.layers.{i}.self_attn"
MLP = "decoder.layers.{i}.mlp"


def rules(config: ModelConfig) -> list[Rule]:
    """Weight-name rules; the norms depend on the residual layout."""
    split = GroupedQKV(config.heads, config.num_kv_heads, config.size_per_head)
    two_norms = config.parallel_residual and not config.shared_norm
    first = "transformer.h.{i}.ln_attn" if two_norms else "transformer.h.{i}.input_layernorm"
    second = "transformer.h.{i}.ln_mlp" if two_norms else "transformer.h.{i}.post_attention_layernorm"
    table = [
        rule("decoder.embed_tokens.weight", "transformer.word_embeddings.weight"),
        rule("decoder.layers.{i}.attn_norm.weight", f"{first}.weight"),
        rule("decoder.layers.{i}.attn_norm.bias", f"{first}.bias"),
        rule("decoder.layers.{i}.mlp_norm.weight", f"{second}.weight"),
        rule("decoder.layers.{i}.mlp_norm.bias", f"{second}.bias"),
        rule(_qkv("weight"), "transformer.h.{i}.self_attention.query_key_value.weight", split),
        rule(_qkv("bias"), "transformer.h.{i}.self_attention.query_key_value.bias", split),
        rule(f"{ATTN}.o_proj.weight", "transformer.h.{i}.self_attention.dense.weight"),
        rule(f"{ATTN}.o_proj.bias", "transformer.h.{i}.self_attention.dense.bias"),
        rule(f"{MLP}.up_proj.weight", "transformer.h.{i}.mlp.dense_h_to_4h.weight"),
        rule(f"{MLP}.up_proj.bias", "transformer.h.{i}.mlp.dense_h_to_4h.bias"),
        rule(f"{MLP}.down_proj.weight", "transformer.h.{i}.mlp.dense_4h_to_h.weight"),
        rule(f"{MLP}.down_proj.bias", "transformer.h.{i}.mlp.dense_4h_to_h.bias"),
        rule("decoder.norm.weight", "transformer.ln_f.weight"),
        rule("decoder.norm.bias", "transformer.ln_f.bias"),
        rule("lm_head.weight", "lm_head.weight"),
    ]
    return per_layer(table, config.decoder_layers)


def _qkv(kind: str) -> list[str]:
    return [f"{ATTN}.{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj")]


def to_model(hf: HfConfig) -> ModelConfig:
    """`config.json` of Falcon -> our architecture."""
    heads, hidden = int(required(hf, "num_attention_heads", "n_head")), int(required(hf, "hidden_size", "n_embed"))
    grouped = bool(hf.get("new_decoder_architecture", False))
    parallel = grouped or bool(hf.get("parallel_attn", True))
    kv_heads = _kv_heads(hf, heads, grouped)
    bias, alibi = bool(hf.get("bias", False)), bool(hf.get("alibi", False))
    return ModelConfig(
        decoder_layers=required(hf, "num_hidden_layers", "n_layer"),
        vocab_size=required(hf, "vocab_size"),
        hidden_size=hidden,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        ffn_size=hf.get("ffn_hidden_size") or 4 * hidden,
        activation=activation(hf.get("activation", "gelu")),
        norm="layernorm",
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        position="alibi" if alibi else "rotary",
        alibi_scaled=alibi,
        max_position=hf.get("max_position_embeddings", 2048),
        rope=rope_from_hf(hf, hidden // heads),
        parallel_residual=parallel,
        shared_norm=parallel and not (grouped and (hf.get("num_ln_in_parallel_attn") or 2) == 2),
        attn_bias=bias,
        attn_out_bias=bias,
        ffn_bias=bias,
        tie_embeddings=bool(hf.get("tie_word_embeddings", True)),
    )


def _kv_heads(hf: HfConfig, heads: int, grouped: bool) -> int:
    """`num_kv_heads` counts only in the grouped layout; elsewhere `multi_query` decides."""
    if grouped:
        return int(hf.get("num_kv_heads") or hf.get("n_head_kv") or heads)
    return 1 if hf.get("multi_query", True) else heads


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Our architecture -> `config.json`, with the current keys."""
    grouped = _is_grouped(config)
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_size,
        "num_hidden_layers": config.decoder_layers,
        "num_attention_heads": config.heads,
        "num_kv_heads": config.num_kv_heads,
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": (1 if config.shared_norm else 2) if grouped else None,
        "multi_query": config.num_kv_heads == 1,
        "parallel_attn": config.parallel_residual,
        "bias": config.attn_bias,
        "alibi": config.position == "alibi",
        "activation": HF_ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "max_position_embeddings": config.max_position,
        **rope_to_hf(config.rope),
        "tie_word_embeddings": config.tie_embeddings,
    }


def _is_grouped(config: ModelConfig) -> bool:
    return config.parallel_residual and (not config.shared_norm or config.num_kv_heads not in (1, config.heads))


EXPRESSIBLE = {
    **SIZES,
    **anything("alibi_scaled", "parallel_residual", "shared_norm", "attn_bias"),
    "position": where(
        lambda config: config.position == "rotary" or (config.position == "alibi" and config.alibi_scaled)
    ),
    "kv_heads": where(
        lambda config: config.parallel_residual or config.num_kv_heads in (1, config.heads),
        " without parallel_residual",
    ),
    "attn_out_bias": where(lambda config: config.attn_out_bias == config.attn_bias, ", unlike attn_bias"),
    "ffn_bias": where(lambda config: config.ffn_bias == config.attn_bias, ", unlike attn_bias"),
}

FALCON = Family("falcon", to_model, to_hf, EXPRESSIBLE, rules, ("*.rotary_emb.inv_freq",))
