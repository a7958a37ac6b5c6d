"""MPT: ALiBi, no biases anywhere."""

from __future__ import annotations

from typing import Any

from onmt_llm.checkpoint.export_guard import where
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    QKV,
    Family,
    HfConfig,
    Row,
    Values,
    always,
    block,
    fused,
    heads,
    modules,
    must_be,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.keys import check_keys
from onmt_llm.checkpoint.formats.ops import SplitRows
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

ENDS = {"decoder.embed_tokens": "transformer.wte", "decoder.norm": "transformer.norm_f", "lm_head": "lm_head"}
NAMES = {
    "attn_norm": "norm_1",
    "self_attn.o_proj": "attn.out_proj",
    "mlp_norm": "norm_2",
    "mlp.up_proj": "ffn.up_proj",
    "mlp.down_proj": "ffn.down_proj",
}
ATTENTION: dict[str, Any] = {
    "attn_type": "multihead_attention",
    "alibi": True,
    "alibi_bias_max": 8,
    "clip_qkv": None,
    "softmax_scale": None,
    "prefix_lm": False,
    "qk_ln": False,
    "attn_uses_sequence_id": False,
}


def rules(config: ModelConfig) -> list[Rule]:
    qkv = fused("transformer.blocks", "attn.Wqkv", QKV, SplitRows((config.hidden_size,) * 3))
    return per_layer([*modules(ENDS), *block("transformer.blocks", NAMES), *qkv], config.decoder_layers)


def _read(hf: HfConfig) -> Values:
    attention = hf.get("attn_config") or {}
    check_keys(attention, [*ATTENTION, "attn_impl"], "the attn_config of mpt")
    must_be(**ATTENTION).read(attention)
    return {"position": "alibi", "ffn_size": 4 * int(required(hf, "d_model"))}


FOUR_TIMES = where(lambda config: config.ffn_size == 4 * config.hidden_size, " and not 4 times hidden_size")

MPT = Family(
    "mpt",
    "MptForCausalLM",
    (
        setting("decoder_layers", "n_layers"),
        setting("vocab_size", "vocab_size"),
        heads(hidden="d_model", count="n_heads"),
        setting("norm_eps", "layer_norm_epsilon", default=1e-5),
        setting("max_position", "max_seq_len", default=2048),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        always(activation="gelu", norm_bias=False, position="alibi"),
        Row(("attn_config",), _read, lambda config: {"attn_config": ATTENTION}, {"ffn_size": FOUR_TIMES}),
        must_be(expansion_ratio=4, no_bias=True, logit_scale=None),
    ),
    rules,
    models="MPT 7B, 30B",
    harmless=(
        "embedding_fraction",
        "init_config",
        "init_device",
        "learned_pos_emb",
        "norm_type",
        "tokenizer_name",
        "verbose",
    ),
)
