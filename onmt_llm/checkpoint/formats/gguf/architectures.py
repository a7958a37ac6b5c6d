"""Architectures of GGUF files: what their metadata says, and what they mean without saying it.

Metadata has the same keys in all of them, and so do tensors; whether there are biases, norms of q and k or an output
layer is seen from the tensors. Where q, k and v (or the two halves of a gated layer) are one matrix, llama.cpp stores
their rows one after the other. (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.gguf import deepseek, t5
from onmt_llm.checkpoint.formats.gguf.layers import WINDOW, layers_without_rotary, windows, windows_with_rotary
from onmt_llm.checkpoint.formats.gguf.mixtures import EXPERT_SIZE, SHARED_SIZE, expert_rules, experts
from onmt_llm.checkpoint.formats.gguf.rope import ROTARY, ROTARY_OR_LONG, rotary_not_truncated, rotary_with_windows
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    QKV,
    HfConfig,
    Row,
    Values,
    always,
    fused,
    heads,
    must_be,
    scale,
    setting,
)
from onmt_llm.checkpoint.formats.names import decoder_rules
from onmt_llm.checkpoint.formats.ops import IDENTITY, Chain, Each, InterleavedRotary, SplitRows
from onmt_llm.checkpoint.formats.rules import Rule, overridden, per_layer, rule
from onmt_llm.config.model import ModelConfig, NormPosition

HARMLESS_KEYS = (
    *("vocab_size", "attention.value_length", "attention.causal", "tensor_data_layout", "expert_used_count"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
)
"""Keys that change nothing that a model computes, or repeat what its tensors show."""


def _softcap(ours: str, key: str, default: float = 0.0) -> Row:
    """A soft cap; 0 = none, and `default` is the value of a file without the key."""
    return Row(
        (key,),
        lambda found: {ours: found.get(key, default) or None},
        lambda config: {key: getattr(config, ours) or 0.0},
        anything(ours),
    )


def _attention_scale() -> Row:
    """The factor of attention scores; 0 or no key = 1 / sqrt(width of a head)."""
    key = "attention.scale"
    plain = scale("attention_scale", key)
    return Row(plain.keys, lambda found: plain.read(found) if found.get(key) else {}, plain.write, plain.checks)


def _scale_of_gemma(layers_of_27b: int) -> Row:
    """Attention scores are divided by sqrt(width of a head); in the model of 27B, known by its number of layers, by
    sqrt(width of the model / heads)."""

    def divisor(width: int, heads: int, size: int, layers: int) -> int:
        return width // heads if layers == layers_of_27b else size

    def read(found: HfConfig) -> Values:
        width, number, layers = (found[key] for key in ("embedding_length", "attention.head_count", "block_count"))
        size = found.get("attention.key_length") or width // number
        return {"attention_scale": divisor(width, number, size, layers) ** -0.5}

    def holds(config: ModelConfig) -> bool:
        sizes = config.hidden_size, config.heads, config.size_per_head, config.decoder_layers
        return config.attention_factor == divisor(*sizes) ** -0.5

    check = where(holds, ", but must be that of the published model with as many layers")
    return Row((), read, lambda config: {}, {"attention_scale": check, "scale_attention": check})


_SHAPE = (
    setting("decoder_layers", "block_count"),
    heads(
        hidden="embedding_length",
        count="attention.head_count",
        kv="attention.head_count_kv",
        head_dim="attention.key_length",
    ),
    setting("ffn_size", "feed_forward_length"),
    setting("max_position", "context_length", default=2048),
)
_SIZES = (*_SHAPE, must_be(expert_count=0))
_RMS = (setting("norm_eps", "attention.layer_norm_rms_epsilon"), always(norm="rmsnorm", ffn_gated=True))
_LAYER = (setting("norm_eps", "attention.layer_norm_epsilon"), always(norm="layernorm"))
_PARALLEL = setting("parallel_residual", "use_parallel_residual", default=True)
_LLAMA = (*_SIZES, *_RMS, ROTARY, always(activation="silu"))
_GEMMA = (*_SIZES, *_RMS, always(activation="gelu_tanh", scale_embeddings=True))
_COHERE = (
    *(*_SIZES, *_LAYER, ROTARY, scale("logit_scale", "logit_scale")),
    always(activation="silu", ffn_gated=True, parallel_residual=True),
)
_EXPERTS = (*_SHAPE, *_RMS, ROTARY, always(activation="silu"))

ARCHITECTURES: Mapping[str, tuple[Row, ...]] = {
    "llama": (*_EXPERTS, experts(normalized=True, optional=True)),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": (*_GEMMA, ROTARY),
    "gemma2": (
        *(*_GEMMA, ROTARY, windows(every=2, default=4096), _scale_of_gemma(layers_of_27b=46)),
        _softcap("attention_softcap", "attn_logit_softcapping", default=50.0),
        _softcap("logit_softcap", "final_logit_softcapping", default=30.0),
    ),
    "gemma3": (
        *(*_GEMMA, rotary_with_windows(local_theta=10000.0), windows(every=6), _scale_of_gemma(layers_of_27b=62)),
        _softcap("logit_softcap", "final_logit_softcapping"),
    ),
    "granite": (
        *(*_LLAMA, _attention_scale(), scale("embedding_scale", "embedding_scale")),
        setting("residual_scale", "residual_scale", default=1.0),
        scale("logit_scale", "logit_scale", inverse=True),
        must_be(**{"rope.scaling.finetuned": True}),  # false: no rotary positions
    ),
    "smollm3": (*_LLAMA, layers_without_rotary(every=4)),
    "olmo2": (*_LLAMA, always(qk_norm_over="all_heads")),
    "command-r": _COHERE,
    "cohere2": (*_COHERE, windows_with_rotary(every=4)),
    "qwen2moe": (*_EXPERTS, experts(normalized=False), EXPERT_SIZE, SHARED_SIZE),
    "qwen3moe": (*_EXPERTS, experts(normalized=True), EXPERT_SIZE),
    "olmoe": (*_EXPERTS, experts(normalized=False, balance=0.01), always(qk_norm_over="all_heads")),
    "gpt-oss": (
        *(*_SHAPE, *_RMS, rotary_not_truncated(), experts(normalized=True), windows(every=2)),
        setting("ffn_size", "expert_feed_forward_length", "feed_forward_length"),
        always(activation="clamped_swiglu", attention_sinks=True),
    ),
    "phi3": (*_LLAMA, ROTARY_OR_LONG, WINDOW),
    "phi2": (*_SIZES, *_LAYER, ROTARY, always(activation="gelu_tanh", parallel_residual=True)),
    "gptneox": (*_SIZES, *_LAYER, ROTARY, always(activation="gelu"), _PARALLEL),
    "falcon": (*_SIZES, *_LAYER, ROTARY, always(activation="gelu", parallel_residual=True)),
    "stablelm": (*_SIZES, *_LAYER, ROTARY, always(activation="silu", ffn_gated=True), _PARALLEL),
    "starcoder2": (*_SIZES, *_LAYER, ROTARY, always(activation="gelu_tanh")),
    "starcoder": (*_SIZES, *_LAYER, always(activation="gelu_tanh", position="learned")),
    "gpt2": (*_SIZES, *_LAYER, always(activation="gelu_tanh", position="learned")),
    "mpt": (
        *_SIZES,
        *_LAYER,
        always(activation="gelu", position="alibi"),
        must_be(**{"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 0.0}),
    ),
    "bloom": (*_SIZES, *_LAYER, always(activation="gelu_tanh", position="alibi")),
    "nemotron": (
        *(*_SIZES, *_LAYER, ROTARY, always(activation="relu2")),
        setting("norm_eps", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),  # files have both
    ),
    "arcee": (*_LLAMA, always(activation="relu2", ffn_gated=False)),
    "ernie4_5": _LLAMA,
    "chatglm": _LLAMA,
    "glm4": _LLAMA,
    "deepseek2": deepseek.ROWS,
    "t5": t5.ROWS,
}
"""For each `general.architecture`, the rows of its map; where two set the same, the later one counts."""

_SAME_NAMES = (
    *("qwen2", "qwen3", "gemma", "gemma2", "granite", "smollm3", "olmo2", "cohere2", "olmoe", "phi3", "falcon"),
    *("stablelm", "starcoder2", "gpt2", "mpt", "bloom", "nemotron", "arcee", "ernie4_5"),
)
MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in _SAME_NAMES},
    "llama": ("llama", "mistral", "mixtral"),
    "gemma3": ("gemma3_text",),
    "command-r": ("cohere",),
    "qwen2moe": ("qwen2_moe",),
    "qwen3moe": ("qwen3_moe",),
    "phi2": ("phi",),
    "gptneox": ("gpt_neox",),
    "starcoder": ("gpt_bigcode",),
    "chatglm": ("glm",),
    "gpt-oss": ("gpt_oss",),
    "glm4": (),
    "deepseek2": ("deepseek_v2", "deepseek_v3"),
    "t5": ("t5", "mt5", "umt5"),
}
"""The Hugging Face families whose models are stored in files of each architecture."""

_INTERLEAVED = (
    *("llama", "granite", "smollm3", "arcee"),  # llama.cpp's converter changes the order
    *("command-r", "cohere2", "ernie4_5", "chatglm", "glm4"),  # so do the models have them
)
"""Architectures in which the rotary pairs of q and k are interleaved; in the others they are in halves."""


_ONE_QKV = ("phi3", "gptneox", "falcon", "starcoder", "gpt2", "mpt", "bloom")
"""Architectures in whose files q, k and v are one matrix."""
_ONE_GATE = ("phi3", "chatglm", "glm4")
"""Architectures in whose files the two halves of a gated layer are one matrix."""


def shown_by_tensors(names: Collection[str], values: Mapping[str, Any]) -> Values:
    """Settings that show in which tensors there are.

    Args:
        names: Names of the tensors.
        values: Settings that the metadata says.
    """
    here = set(names)
    if t5.is_t5(here):
        return t5.shown_by_tensors(here)
    two_norms = not here.isdisjoint(("blk.0.ffn_norm.weight", "blk.0.attn_norm_2.weight"))
    layers = range(values["decoder_layers"]) if values.get("moe.experts") else ()
    return {
        "tie_embeddings": "output.weight" not in here,
        "lm_head_bias": "output.bias" in here,
        "norm_bias": "output_norm.bias" in here or values["norm"] != "layernorm",
        "attn_bias": not here.isdisjoint(("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")),
        "attn_out_bias": "blk.0.attn_output.bias" in here,
        "ffn_bias": not here.isdisjoint(("blk.0.ffn_up.bias", "blk.0.ffn_up_exps.bias")),
        "qk_norm": "blk.0.attn_q_norm.weight" in here,
        "shared_norm": bool(values.get("parallel_residual")) and not two_norms,
        "norm_position": "pre" if values.get("attention_sinks") else _norm_position(here),
        "embed_norm": "token_embd_norm.weight" in here,
        "moe.router_bias": "blk.0.ffn_gate_inp.bias" in here,
        "moe.dense_layers": [layer for layer in layers if f"blk.{layer}.ffn_gate_inp.weight" not in here],
    }


def _norm_position(here: Collection[str]) -> NormPosition:
    if "blk.0.post_attention_norm.weight" not in here:
        return "pre"
    return "both" if "blk.0.attn_norm.weight" in here else "output"


def layout(architecture: str, config: ModelConfig) -> frozenset[str]:
    """Names of tensors that decide how `rules` reads the others, of a model that is to be written."""
    names = {"blk.0.ffn_up.weight"} if 0 not in config.moe_layers else set()
    if architecture in _ONE_QKV:
        names.add("blk.0.attn_qkv.weight")
    if config.ffn_gated and architecture not in _ONE_GATE:
        names.add("blk.0.ffn_gate.weight")
    if architecture == "falcon" and not config.shared_norm:
        names.add("blk.0.attn_norm_2.weight")
    return frozenset(names)


def rules(architecture: str, config: ModelConfig, names: Collection[str]) -> list[Rule]:
    """Weight-name rules for a file with tensors of these names."""
    if config.encoder_layers:
        return t5.rules(config)
    order = InterleavedRotary(config.size_per_head, config.rope.rotary_dim)
    rotary = order if architecture in _INTERLEAVED else IDENTITY
    table = [*decoder_rules("gguf", {"q_proj": rotary, "k_proj": rotary}), *expert_rules(config, names)]
    query, key = config.heads * config.size_per_head, config.num_kv_heads * config.size_per_head
    if "blk.0.attn_qkv.weight" in names:
        split = Chain((SplitRows((query, key, key)), Each((rotary, rotary, IDENTITY))))
        table = overridden(table, fused("blk", "attn_qkv", QKV, split))
    if config.ffn_gated and "blk.0.ffn_up.weight" in names and "blk.0.ffn_gate.weight" not in names:
        gated = SplitRows((config.ffn_size, config.ffn_size))
        table = overridden(table, fused("blk", "ffn_up", ("mlp.gate_proj", "mlp.up_proj"), gated))
    if "blk.0.attn_norm_2.weight" in names:  # Falcon 40B: the first is the feed-forward layer's
        table = overridden(table, _falcon_norms())
    if config.latent.kv_rank:
        table = overridden(table, deepseek.rules(config, names))
    if config.attention_sinks:  # gpt-oss: the norm of the feed-forward layer's input has the name of another one
        table = [one for one in overridden(table, _OF_GPT_OSS) if ".attn_out_norm." not in one.ours[0]]
    return per_layer(table, config.decoder_layers)


def _falcon_norms() -> list[Rule]:
    return [
        rule(f"decoder.layers.{{i}}.{ours}.{kind}", f"blk.{{i}}.{theirs}.{kind}")
        for ours, theirs in (("attn_norm", "attn_norm_2"), ("mlp_norm", "attn_norm"))
        for kind in ("weight", "bias")
    ]


_OF_GPT_OSS = [
    rule("decoder.layers.{i}.mlp_norm.weight", "blk.{i}.post_attention_norm.weight"),
    rule("decoder.layers.{i}.self_attn.sinks", "blk.{i}.attn_sinks.weight"),
]
