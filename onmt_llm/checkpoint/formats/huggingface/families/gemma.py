"""Gemma: Llama with scaled embeddings, and with norms that multiply by 1 + weight."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import only
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
from onmt_llm.checkpoint.formats.ops import Offset
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

NORMS = [
    *modules({"decoder.norm": "model.norm"}, Offset(1.0)),
    *block("model.layers", {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}, Offset(1.0)),
]


def rules(config: ModelConfig) -> list[Rule]:
    return per_layer(llama.rules_but(*NORMS), config.decoder_layers)


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
    rules,
    llama.IGNORE,
    models="Gemma 1, CodeGemma",
)
