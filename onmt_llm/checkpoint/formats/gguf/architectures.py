"""Architectures of GGUF files: what their metadata says, and what they mean without saying it.

Metadata has the same keys in all of them, and so do tensors; whether there are biases, norms of q and k or an output
layer is seen from the tensors. Where q, k and v (or the two halves of a gated layer) are one matrix, llama.cpp stores
their rows one after the other. (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from onmt_llm.checkpoint.export_guard import anything
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    QKV,
    HfConfig,
    Row,
    Values,
    always,
    fused,
    heads,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.names import decoder_rules
from onmt_llm.checkpoint.formats.ops import IDENTITY, InterleavedRotary, SplitRows
from onmt_llm.checkpoint.formats.rules import Rule, overridden, per_layer, rule
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.positions import rotary_frequencies

HARMLESS_KEYS = (
    *("vocab_size", "attention.value_length", "attention.causal", "tensor_data_layout", "expert_used_count"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
)
"""Keys that change nothing that a model computes, or repeat what its tensors show."""

ROPE_FREQS = "rope_freqs.weight"
"""A tensor with the divisors of the rotary frequencies; given to the rows among the keys."""


def _decimal(value: float) -> float:
    """The intended decimal number: GGUF stores 1e-5 as the nearest float32."""
    return float(f"{value:.7g}")


def _epsilon(key: str) -> Row:
    plain = setting("norm_eps", key)
    return Row(
        plain.keys, lambda found: {"norm_eps": _decimal(plain.read(found)["norm_eps"])}, plain.write, plain.checks
    )


def _read_rope(found: HfConfig) -> Values:
    head_dim = found.get("attention.key_length") or found["embedding_length"] // found["attention.head_count"]
    rotary_dim = int(found.get("rope.dimension_count", head_dim))
    theta = _decimal(found.get("rope.freq_base", 10000.0))
    plain = RopeConfig(theta=theta, rotary_dim=None if rotary_dim == head_dim else rotary_dim)
    kind = found.get("rope.scaling.type", "none")
    if ROPE_FREQS in found:
        rope = _llama3_rope(found[ROPE_FREQS].float(), plain, rotary_dim)
    elif kind == "linear":
        rope = plain.model_copy(update={"scaling": "linear", "factor": _decimal(found["rope.scaling.factor"])})
    elif kind != "none":
        raise UnsupportedError(f"Rotary scaling must be none, linear or llama3, but is '{kind}'.")
    else:
        rope = plain
    return {"position": "rotary", "rope": rope}


def _llama3_rope(divisors: torch.Tensor, plain: RopeConfig, rotary_dim: int) -> RopeConfig:
    """LLaMA 3.1's scaling: GGUF stores only the divisor of each frequency; the rest are published constants.

    Raises:
        UnsupportedError: The divisors do not follow LLaMA 3.1's formula.
    """
    rope = plain.model_copy(update={"scaling": "llama3", "factor": _decimal(float(divisors.max()))})
    cpu = torch.device("cpu")
    expected = rotary_frequencies(plain, rotary_dim, cpu) / rotary_frequencies(rope, rotary_dim, cpu)
    if divisors.shape != expected.shape or not torch.allclose(expected, divisors, rtol=1e-4):
        raise UnsupportedError(
            "The GGUF file scales rotary frequencies in another way than LLaMA 3.1 (rope_freqs.weight)."
        )
    return rope


def _write_rope(config: ModelConfig) -> Values:
    return {"rope.freq_base": config.rope.theta, "rope.dimension_count": config.rotary_size}


_ROTARY = Row(
    ("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", ROPE_FREQS),
    _read_rope,
    _write_rope,
    anything("position", "rope.theta", "rope.rotary_dim"),
)
_WINDOW = Row(
    ("attention.sliding_window",),
    lambda found: {"sliding_window": found.get("attention.sliding_window") or None},
    lambda config: {"attention.sliding_window": config.sliding_window or 0},
    anything("sliding_window"),
)
_SIZES = (
    setting("decoder_layers", "block_count"),
    heads(
        hidden="embedding_length",
        count="attention.head_count",
        kv="attention.head_count_kv",
        head_dim="attention.key_length",
    ),
    setting("ffn_size", "feed_forward_length"),
    setting("max_position", "context_length", default=2048),
    must_be(expert_count=0),
)
_RMS = (_epsilon("attention.layer_norm_rms_epsilon"), always(norm="rmsnorm", ffn_gated=True))
_LAYER = (_epsilon("attention.layer_norm_epsilon"), always(norm="layernorm"))
_PARALLEL = setting("parallel_residual", "use_parallel_residual", default=True)
_LLAMA = (*_SIZES, *_RMS, _ROTARY, always(activation="silu"))

ARCHITECTURES: Mapping[str, tuple[Row, ...]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": (*_SIZES, *_RMS, _ROTARY, always(activation="gelu_tanh", scale_embeddings=True)),
    "phi3": (*_LLAMA, _WINDOW),
    "phi2": (*_SIZES, *_LAYER, _ROTARY, always(activation="gelu_tanh", parallel_residual=True)),
    "gptneox": (*_SIZES, *_LAYER, _ROTARY, always(activation="gelu"), _PARALLEL),
    "falcon": (*_SIZES, *_LAYER, _ROTARY, always(activation="gelu", parallel_residual=True)),
    "stablelm": (*_SIZES, *_LAYER, _ROTARY, always(activation="silu", ffn_gated=True), _PARALLEL),
    "starcoder2": (*_SIZES, *_LAYER, _ROTARY, always(activation="gelu_tanh")),
    "starcoder": (*_SIZES, *_LAYER, always(activation="gelu_tanh", position="learned")),
    "gpt2": (*_SIZES, *_LAYER, always(activation="gelu_tanh", position="learned")),
    "mpt": (
        *_SIZES,
        *_LAYER,
        always(activation="gelu", position="alibi"),
        must_be(**{"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 0.0}),
    ),
}
"""For each `general.architecture`, the rows of its map; where two set the same, the later one counts."""

MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    **{
        name: (name,) for name in ("qwen2", "qwen3", "gemma", "phi3", "falcon", "stablelm", "starcoder2", "gpt2", "mpt")
    },
    "llama": ("llama", "mistral"),
    "phi2": ("phi",),
    "gptneox": ("gpt_neox",),
    "starcoder": ("gpt_bigcode",),
}
"""The Hugging Face families whose models are stored in files of each architecture."""

_INTERLEAVED = ("llama",)
"""Architectures in which the rotary pairs of q and k are interleaved; in the others they are in halves."""


def shown_by_tensors(names: Collection[str], values: Mapping[str, Any]) -> Values:
    """Settings that show in which tensors there are.

    Args:
        names: Names of the tensors.
        values: Settings that the metadata says.
    """
    here = set(names)
    two_norms = not here.isdisjoint(("blk.0.ffn_norm.weight", "blk.0.attn_norm_2.weight"))
    return {
        "tie_embeddings": "output.weight" not in here,
        "lm_head_bias": "output.bias" in here,
        "norm_bias": "output_norm.bias" in here or values["norm"] != "layernorm",
        "attn_bias": not here.isdisjoint(("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")),
        "attn_out_bias": "blk.0.attn_output.bias" in here,
        "ffn_bias": "blk.0.ffn_up.bias" in here,
        "qk_norm": "blk.0.attn_q_norm.weight" in here,
        "shared_norm": bool(values.get("parallel_residual")) and not two_norms,
    }


def rules(architecture: str, config: ModelConfig, names: Collection[str]) -> list[Rule]:
    """Weight-name rules for a file with tensors of these names."""
    order = InterleavedRotary(config.size_per_head, config.rope.rotary_dim)
    rotary = order if architecture in _INTERLEAVED else IDENTITY
    table = decoder_rules("gguf", {"q_proj": rotary, "k_proj": rotary})
    query, key = config.heads * config.size_per_head, config.num_kv_heads * config.size_per_head
    if "blk.0.attn_qkv.weight" in names:
        table = overridden(table, fused("blk", "attn_qkv", QKV, SplitRows((query, key, key))))
    if config.ffn_gated and "blk.0.ffn_gate.weight" not in names:
        gated = SplitRows((config.ffn_size, config.ffn_size))
        table = overridden(table, fused("blk", "ffn_up", ("mlp.gate_proj", "mlp.up_proj"), gated))
    if "blk.0.attn_norm_2.weight" in names:  # Falcon 40B: the first is the feed-forward layer's
        table = overridden(table, _falcon_norms())
    return per_layer(table, config.decoder_layers)


def _falcon_norms() -> list[Rule]:
    return [
        rule(f"decoder.layers.{{i}}.{ours}.{kind}", f"blk.{{i}}.{theirs}.{kind}")
        for ours, theirs in (("attn_norm", "attn_norm_2"), ("mlp_norm", "attn_norm"))
        for kind in ("weight", "bias")
    ]
