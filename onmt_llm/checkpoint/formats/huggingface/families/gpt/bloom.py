"""BLOOM: ALiBi, a LayerNorm of the embeddings, biases everywhere."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    always,
    heads,
    modules,
    must_be,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.gpt import falcon, mpt
from onmt_llm.checkpoint.formats.rules import Rule
from onmt_llm.config.model import ModelConfig

EMBED_NORM = modules({"decoder.embed_norm": "transformer.word_embeddings_layernorm"})


def rules(config: ModelConfig) -> list[Rule]:
    """Falcon's of one group per head, and the norm of the embeddings."""
    return [*falcon.rules(config), *EMBED_NORM]


def _read_width(hf: HfConfig) -> Values:
    return {"ffn_size": 4 * int(required(hf, "hidden_size", "n_embed"))}


BLOOM = Family(
    "bloom",
    "BloomForCausalLM",
    (
        setting("decoder_layers", "n_layer", "num_hidden_layers"),
        setting("vocab_size", "vocab_size"),
        heads(hidden="hidden_size n_embed", count="n_head num_attention_heads"),
        Row((), _read_width, lambda config: {}, {"ffn_size": mpt.FOUR_TIMES}),
        setting("norm_eps", "layer_norm_epsilon", default=1e-5),
        setting("max_position", "seq_length", default=2048),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        always(position="alibi", embed_norm=True, activation="gelu_tanh"),
        always(attn_bias=True, attn_out_bias=True, ffn_bias=True),
        must_be(apply_residual_connection_post_layernorm=False, slow_but_exact=False),
    ),
    rules,
    models="BLOOM, BLOOMZ",
    harmless=("offset_alibi", "skip_bias_add*", "*_fusion", "attention_softmax_in_fp32"),
    older=tuple((name, f"transformer.{name}") for name in ("word_embeddings", "h.", "ln_f.")),
)
