"""GPT-2: learned positions; its matrices are stored transposed."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything
from onmt_llm.checkpoint.formats.huggingface.families.base import QKV, Family, block, fused, modules
from onmt_llm.checkpoint.formats.huggingface.families.config_map import (
    HfConfig,
    Row,
    activation,
    always,
    heads,
    must_be,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.rules import Chain, Rule, SplitRows, Transpose, per_layer
from onmt_llm.config.model import ModelConfig

ENDS = {
    "decoder.embed_tokens": "transformer.wte",
    "decoder.embed_positions": "transformer.wpe",
    "decoder.norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
MATRICES = {"self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}


def rules(config: ModelConfig) -> list[Rule]:
    split = Chain((Transpose(), SplitRows((config.hidden_size,) * 3)))
    table = [
        *modules(ENDS),
        *block("transformer.h", {"attn_norm": "ln_1", "mlp_norm": "ln_2"}),
        *block("transformer.h", MATRICES, Transpose()),
        *fused("transformer.h", "attn.c_attn", QKV, split),
    ]
    return per_layer(table, config.decoder_layers)


def _ffn_size(hf: HfConfig) -> int:
    return int(hf.get("n_inner") or 4 * int(required(hf, "n_embd")))


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    (
        setting("decoder_layers", "n_layer"),
        setting("vocab_size", "vocab_size"),
        heads(hidden="n_embd", count="n_head"),
        Row(
            ("n_inner",),
            lambda hf: {"ffn_size": _ffn_size(hf)},
            lambda config: {"n_inner": config.ffn_size},
            anything("ffn_size"),
        ),
        activation("activation_function", "gelu_new"),
        setting("norm_eps", "layer_norm_epsilon", default=1e-5),
        setting("max_position", "n_positions", default=1024),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        always(position="learned", attn_bias=True, attn_out_bias=True, ffn_bias=True),
        must_be(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    ),
    rules,
    ("*.attn.bias", "*.attn.masked_bias"),
    models="GPT-2, DistilGPT2",
    harmless=("n_ctx", "reorder_and_upcast_attn", "summary_*"),
    older=(
        ("wte.", "transformer.wte."),
        ("wpe.", "transformer.wpe."),
        ("h.", "transformer.h."),
        ("ln_f.", "transformer.ln_f."),
    ),
)
