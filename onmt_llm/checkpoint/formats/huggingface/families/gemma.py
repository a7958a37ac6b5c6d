"""Gemma: Llama with scaled embeddings, and with norms that multiply by 1 + weight.

Gemma 2 and 3 also normalise the outputs of sub-layers, and have a sliding window in every second layer (2), or in five
of six (3). Gemma 2 caps attention scores and logits; Gemma 3 normalises q and k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onmt_llm.checkpoint.export_guard import anything, only, where
from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    block,
    heads,
    modules,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import windows
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary, rotary_by_type
from onmt_llm.checkpoint.formats.ops import Offset
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
BOTH_NORMS = {
    "attn_norm": "input_layernorm",
    "attn_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
HEAD_NORMS = {"self_attn.q_norm": "self_attn.q_norm", "self_attn.k_norm": "self_attn.k_norm"}


def rules_with(norms: Mapping[str, str]) -> Callable[[ModelConfig], list[Rule]]:
    """Llama's rules, with these norms in each block."""
    plus_one = Offset(1.0)
    others = [*modules({"decoder.norm": "model.norm"}, plus_one), *block("model.layers", norms, plus_one)]
    return lambda config: per_layer(llama.rules_but(*others), config.decoder_layers)


def _read_activation(hf: HfConfig) -> Values:
    """The published files say `gelu` and mean its approximation by tanh."""
    name = hf.get("hidden_act")
    return ACTIVATION.read({"hidden_act": None if name == "gelu" else name})


ACTIVATION = activation("hidden_act", "gelu_pytorch_tanh")

GEMMA = Family(
    "gemma",
    "GemmaForCausalLM",
    (
        *llama.LLAMA_ROWS,
        heads(kv="num_key_value_heads", head_dim="head_dim", default=256),
        Row(("hidden_act",), _read_activation, ACTIVATION.write, {"activation": only("gelu_tanh", "silu", "relu")}),
        setting("max_position", "max_position_embeddings", default=8192),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        always(scale_embeddings=True),
        must_be(use_bidirectional_attention=False, hidden_activation="gelu_pytorch_tanh"),
    ),
    rules_with(NORMS),
    llama.IGNORE,
    models="Gemma 1, CodeGemma",
)


def _query_scale() -> Row:
    """`query_pre_attn_scalar`: attention scores are divided by its square root."""

    def read(hf: HfConfig) -> Values:
        value = hf.get("query_pre_attn_scalar", 256)
        return {"attention_scale": value**-0.5 if isinstance(value, int | float) and value > 0 else value}

    def write(config: ModelConfig) -> Values:
        return {"query_pre_attn_scalar": round(config.attention_factor**-2)}

    def holds(config: ModelConfig) -> bool:
        number = round(config.attention_factor**-2)
        return number > 0 and number**-0.5 == config.attention_factor

    scale = where(holds, ", but attention scores are divided by the square root of a whole number")
    return Row(("query_pre_attn_scalar",), read, write, {"attention_scale": scale, **anything("scale_attention")})


def _softcap(ours: str, key: str, default: float | None = None) -> Row:
    """A soft cap; null = none, and `default` is the value of a key that is not there."""
    return Row(
        (key,), lambda hf: {ours: hf.get(key, default)}, lambda config: {key: getattr(config, ours)}, anything(ours)
    )


ROWS = (
    *llama.SIZES,
    heads(kv="num_key_value_heads", head_dim="head_dim", default=256),
    activation("hidden_activation", "gelu_pytorch_tanh"),
    setting("norm_eps", "rms_norm_eps", default=1e-6),
    setting("tie_embeddings", "tie_word_embeddings", default=True),
    setting("attn_bias attn_out_bias", "attention_bias", default=False),
    _query_scale(),
    always(norm="rmsnorm", norm_position="both", ffn_gated=True, scale_embeddings=True),
    must_be(use_bidirectional_attention=False),
)
GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    (
        *ROWS,
        setting("max_position", "max_position_embeddings", default=8192),
        rotary(),
        windows(every=2),
        _softcap("attention_softcap", "attn_logit_softcapping", default=50.0),
        _softcap("logit_softcap", "final_logit_softcapping", default=30.0),
    ),
    rules_with(BOTH_NORMS),
    llama.IGNORE,
    models="Gemma 2",
    harmless=("hidden_act",),  # transformers reads hidden_activation
)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    (
        *ROWS,
        setting("max_position", "max_position_embeddings", default=131072),
        rotary_by_type(theta=1000000.0, local_theta=10000.0),
        windows(every=6),
        _softcap("logit_softcap", "final_logit_softcapping"),
        always(qk_norm=True),
        must_be(attn_logit_softcapping=None),
    ),
    rules_with(BOTH_NORMS | HEAD_NORMS),
    llama.IGNORE,
    models="Gemma 3, text only",
)
