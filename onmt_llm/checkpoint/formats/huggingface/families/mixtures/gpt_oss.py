"""gpt-oss: attention sinks, sliding windows in every other layer, biases, and experts with a clamped SwiGLU.

The experts of a layer are stored as one tensor, transposed, in which the columns of gate and up alternate; in the
published files they are in MXFP4 (`mxfp4.py`).
"""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    always,
    heads,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import windows
from onmt_llm.checkpoint.formats.huggingface.families.mixtures.experts import HARMLESS, experts, of_all
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import Alternating, Chain, Stacked, Transpose
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

_LAYER = "model.layers.{i}"
_LONGEST = 131072
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Rotary positions of a `config.json` that says nothing about them, as in transformers."""


def rules(config: ModelConfig) -> list[Rule]:
    count, experts = config.moe.experts, f"{_LAYER}.mlp.experts"

    def of_experts(kind: str, *layers: str) -> list[str]:
        return of_all(kind, *layers, experts=count)

    mixed = Alternating(2)
    own = [
        rule("decoder.layers.{i}.self_attn.sinks", f"{_LAYER}.self_attn.sinks"),
        rule("decoder.layers.{i}.mlp.router.weight", f"{_LAYER}.mlp.router.weight"),
        rule("decoder.layers.{i}.mlp.router.bias", f"{_LAYER}.mlp.router.bias"),
        rule(
            of_experts("weight", "gate", "up"),
            f"{experts}.gate_up_proj",
            Stacked(count, Chain((Transpose(), mixed))),
        ),
        rule(of_experts("bias", "gate", "up"), f"{experts}.gate_up_proj_bias", Stacked(count, mixed)),
        rule(of_experts("weight", "down"), f"{experts}.down_proj", Stacked(count, Transpose())),
        rule(of_experts("bias", "down"), f"{experts}.down_proj_bias", Stacked(count)),
    ]
    return per_layer([*llama.RULES, *own], config.decoder_layers)


def _rotary() -> Row:
    row = rotary(default_theta=150000.0)

    def read(hf: HfConfig) -> Values:
        if not hf.get("rope_parameters") and not hf.get("rope_scaling"):
            hf = {**hf, "rope_parameters": _YARN}
        return row.read({**hf, "max_position_embeddings": hf.get("max_position_embeddings") or _LONGEST})

    return Row(row.keys, read, row.write, row.checks)


GPT_OSS = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    (
        *llama.SIZES,
        *experts("num_local_experts", "num_experts", defaults=(128, 4)),
        heads(kv="num_key_value_heads", head_dim="head_dim", default=64),
        setting("norm_eps", "rms_norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=_LONGEST),
        setting("attn_bias attn_out_bias", "attention_bias", default=True),
        windows(every=2, default=128),
        _rotary(),
        must_be(hidden_act="silu", swiglu_alpha=1.702, swiglu_limit=7.0),
        always(
            norm="rmsnorm",
            ffn_gated=True,
            ffn_bias=True,
            activation="clamped_swiglu",
            attention_sinks=True,
            **{"moe.router_bias": True, "moe.normalize_weights": True},
        ),
    ),
    rules,
    llama.IGNORE,
    models="gpt-oss-20b, gpt-oss-120b",
    harmless=(*HARMLESS, "initial_context_length", "experts_per_token"),
)
