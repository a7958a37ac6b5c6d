"""Llama, and its close relatives Mistral (sliding window) and Qwen2 (biases on q, k, v)."""

from __future__ import annotations

from typing import Any

from onmt_llm.checkpoint.export_guard import anything, only, where
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
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError

RULES = [
    rule("decoder.embed_tokens.weight", "model.embed_tokens.weight"),
    rule("decoder.layers.{i}.attn_norm.weight", "model.layers.{i}.input_layernorm.weight"),
    rule("decoder.layers.{i}.self_attn.q_proj.weight", "model.layers.{i}.self_attn.q_proj.weight"),
    rule("decoder.layers.{i}.self_attn.q_proj.bias", "model.layers.{i}.self_attn.q_proj.bias"),
    rule("decoder.layers.{i}.self_attn.k_proj.weight", "model.layers.{i}.self_attn.k_proj.weight"),
    rule("decoder.layers.{i}.self_attn.k_proj.bias", "model.layers.{i}.self_attn.k_proj.bias"),
    rule("decoder.layers.{i}.self_attn.v_proj.weight", "model.layers.{i}.self_attn.v_proj.weight"),
    rule("decoder.layers.{i}.self_attn.v_proj.bias", "model.layers.{i}.self_attn.v_proj.bias"),
    rule("decoder.layers.{i}.self_attn.o_proj.weight", "model.layers.{i}.self_attn.o_proj.weight"),
    rule("decoder.layers.{i}.self_attn.o_proj.bias", "model.layers.{i}.self_attn.o_proj.bias"),
    rule("decoder.layers.{i}.mlp_norm.weight", "model.layers.{i}.post_attention_layernorm.weight"),
    rule("decoder.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.gate_proj.weight"),
    rule("decoder.layers.{i}.mlp.gate_proj.bias", "model.layers.{i}.mlp.gate_proj.bias"),
    rule("decoder.layers.{i}.mlp.up_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
    rule("decoder.layers.{i}.mlp.up_proj.bias", "model.layers.{i}.mlp.up_proj.bias"),
    rule("decoder.layers.{i}.mlp.down_proj.weight", "model.layers.{i}.mlp.down_proj.weight"),
    rule("decoder.layers.{i}.mlp.down_proj.bias", "model.layers.{i}.mlp.down_proj.bias"),
    rule("decoder.norm.weight", "model.norm.weight"),
    rule("lm_head.weight", "lm_head.weight"),
]


def rules(config: ModelConfig) -> list[Rule]:
    return per_layer(RULES, config.decoder_layers)


def to_model(hf: HfConfig) -> ModelConfig:
    """`config.json` of Llama, Mistral or Qwen2 -> our architecture."""
    heads, hidden = int(required(hf, "num_attention_heads")), int(required(hf, "hidden_size"))
    kv_heads = int(hf.get("num_key_value_heads") or heads)
    head_dim = int(hf.get("head_dim") or hidden // heads)
    is_qwen2 = hf.get("model_type") == "qwen2"
    attention_bias = bool(hf.get("attention_bias", False))
    return ModelConfig(
        decoder_layers=required(hf, "num_hidden_layers"),
        vocab_size=required(hf, "vocab_size"),
        hidden_size=hidden,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if head_dim * heads == hidden else head_dim,
        ffn_size=required(hf, "intermediate_size"),
        ffn_gated=True,
        activation=activation(hf.get("hidden_act", "silu")),
        norm="rmsnorm",
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        position="rotary",
        max_position=hf.get("max_position_embeddings", 2048),
        rope=rope_from_hf(hf, head_dim),
        attn_bias=is_qwen2 or attention_bias,
        attn_out_bias=attention_bias,
        ffn_bias=bool(hf.get("mlp_bias", False)),
        sliding_window=_sliding_window(hf),
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )


def _sliding_window(hf: HfConfig) -> int | None:
    """The window of all layers, with the defaults of transformers for keys that are not there."""
    if hf.get("model_type") != "qwen2":
        window = hf.get("sliding_window", 4096 if hf.get("model_type") == "mistral" else None)
        return None if window is None else int(window)
    if not hf.get("use_sliding_window", False) or hf.get("sliding_window", 4096) is None:
        return None
    layers, first = int(required(hf, "num_hidden_layers")), int(hf.get("max_window_layers", 28))
    kinds = hf.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if len(set(kinds)) > 1:
        raise UnsupportedError(
            "All layers must have the same kind of attention, but layer_types or max_window_layers in config.json give "
            f"{kinds.count('sliding_attention')} of {layers} layers a sliding window."
        )
    return int(hf.get("sliding_window", 4096)) if kinds[0] == "sliding_attention" else None


def _to_hf(config: ModelConfig, model_type: str, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.decoder_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.size_per_head,
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_position,
        **rope_to_hf(config.rope),
        "tie_word_embeddings": config.tie_embeddings,
    }


def _llama_to_hf(config: ModelConfig) -> dict[str, Any]:
    extra = {"attention_bias": config.attn_bias, "mlp_bias": config.ffn_bias}
    return {**_to_hf(config, "llama", "LlamaForCausalLM"), **extra}


def _mistral_to_hf(config: ModelConfig) -> dict[str, Any]:
    return {**_to_hf(config, "mistral", "MistralForCausalLM"), "sliding_window": config.sliding_window}


def _qwen2_to_hf(config: ModelConfig) -> dict[str, Any]:
    window = {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0,
    }
    return {**_to_hf(config, "qwen2", "Qwen2ForCausalLM"), **window}


_COMMON = {
    **SIZES,
    **anything("kv_heads", "head_dim"),
    "ffn_gated": only(True),
    "norm": only("rmsnorm"),
    "position": only("rotary"),
}
_LLAMA = {
    **_COMMON,
    **anything("attn_bias", "ffn_bias"),
    "attn_out_bias": where(lambda config: config.attn_out_bias == config.attn_bias, ", unlike attn_bias"),
}
_MISTRAL = {**_COMMON, **anything("sliding_window")}
_QWEN2 = {**_COMMON, **anything("sliding_window"), "attn_bias": only(True)}

IGNORE = ("*.rotary_emb.inv_freq",)

LLAMA = Family("llama", to_model, _llama_to_hf, _LLAMA, rules, IGNORE)
MISTRAL = Family("mistral", to_model, _mistral_to_hf, _MISTRAL, rules, IGNORE)
QWEN2 = Family("qwen2", to_model, _qwen2_to_hf, _QWEN2, rules, IGNORE)
