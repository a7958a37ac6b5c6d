"""GPT-2 (learned positions; its matrices are stored transposed) and GPTBigCode (multi-query, nothing transposed)."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    QKV,
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    block,
    fused,
    heads,
    modules,
    must_be,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.ops import Chain, GroupedQKV, Identity, Op, SplitRows, Transpose
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

ENDS = {
    "decoder.embed_tokens": "transformer.wte",
    "decoder.embed_positions": "transformer.wpe",
    "decoder.norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
MATRICES = {"self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}


IGNORE = ("*.attn.bias", "*.attn.masked_bias")


def rules(config: ModelConfig) -> list[Rule]:
    split = SplitRows((config.hidden_size,) * 3)
    return _rules(config, fused("transformer.h", "attn.c_attn", QKV, Chain((Transpose(), split))), Transpose())


def bigcode_rules(config: ModelConfig) -> list[Rule]:
    split = GroupedQKV(config.heads, config.num_kv_heads, config.size_per_head)
    return _rules(config, fused("transformer.h", "attn.c_attn", QKV, split), Identity())


def _rules(config: ModelConfig, qkv: list[Rule], layout: Op) -> list[Rule]:
    norms = block("transformer.h", {"attn_norm": "ln_1", "mlp_norm": "ln_2"})
    return per_layer([*modules(ENDS), *norms, *block("transformer.h", MATRICES, layout), *qkv], config.decoder_layers)


def _read_ffn(hf: HfConfig) -> Values:
    return {"ffn_size": hf.get("n_inner") or 4 * int(required(hf, "n_embd"))}


SIZES = (
    setting("decoder_layers", "n_layer"),
    setting("vocab_size", "vocab_size"),
    heads(hidden="n_embd", count="n_head"),
    Row(("n_inner",), _read_ffn, lambda config: {"n_inner": config.ffn_size}, anything("ffn_size")),
    setting("norm_eps", "layer_norm_epsilon", default=1e-5),
    setting("max_position", "n_positions", default=1024),
)
LAYERS = (
    setting("tie_embeddings", "tie_word_embeddings", default=True),
    always(position="learned", attn_bias=True, attn_out_bias=True, ffn_bias=True),
    must_be(scale_attn_weights=True, add_cross_attention=False),
)

GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    (*SIZES, *LAYERS, activation("activation_function", "gelu_new"), must_be(scale_attn_by_inverse_layer_idx=False)),
    rules,
    IGNORE,
    models="GPT-2, DistilGPT2",
    harmless=("n_ctx", "reorder_and_upcast_attn", "summary_*"),
    older=(
        ("wte.", "transformer.wte."),
        ("wpe.", "transformer.wpe."),
        ("h.", "transformer.h."),
        ("ln_f.", "transformer.ln_f."),
    ),
)
ONE_OR_ALL = Row(
    ("multi_query", "num_key_value_heads"),
    lambda hf: {"kv_heads": 1 if hf.get("multi_query", True) else None},
    lambda config: {"multi_query": config.num_kv_heads == 1},
    {"kv_heads": where(lambda config: config.num_kv_heads in (1, config.heads), ", neither all nor 1")},
)
GPT_BIGCODE = Family(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    (*SIZES, *LAYERS, activation("activation_function", "gelu_pytorch_tanh"), ONE_OR_ALL),
    bigcode_rules,
    IGNORE,
    models="StarCoder, SantaCoder",
    harmless=(
        *("summary_*", "*attention_softmax_in_fp32", "max_sequence_length", "max_batch_size", "pad_key_length"),
        *("inference_runner", "pre_allocate_kv_cache", "validate_runner_input"),
    ),
)
