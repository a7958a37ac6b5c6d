"""GPT-J: parallel sub-layers with one norm; interleaved rotary positions on a part of each head."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything, only
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    block,
    modules,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.gpt import gpt2
from onmt_llm.checkpoint.formats.ops import InterleavedRotary
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

ENDS = {"decoder.embed_tokens": "transformer.wte", "decoder.norm": "transformer.ln_f", "lm_head": "lm_head"}
NAMES = {
    "attn_norm": "ln_1",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.out_proj",
    "mlp.up_proj": "mlp.fc_in",
    "mlp.down_proj": "mlp.fc_out",
}
ROTATED = {"self_attn.q_proj": "attn.q_proj", "self_attn.k_proj": "attn.k_proj"}


def rules(config: ModelConfig) -> list[Rule]:
    order = InterleavedRotary(config.size_per_head, config.rotary_size)
    table = [*modules(ENDS), *block("transformer.h", NAMES), *block("transformer.h", ROTATED, order)]
    return per_layer(table, config.decoder_layers)


def _read_rotary(hf: HfConfig) -> Values:
    return {"position": "rotary", "rope": {"rotary_dim": hf.get("rotary_dim", 64)}}


ROTARY = Row(
    ("rotary_dim",),
    _read_rotary,
    lambda config: {"rotary_dim": config.rotary_size},
    {**anything("rope.rotary_dim"), "rope.theta": only(10000.0), "position": only("rotary")},
)
GPTJ = Family(
    "gptj",
    "GPTJForCausalLM",
    (
        *gpt2.SIZES,
        setting("max_position", "n_positions", default=2048),
        setting("tie_embeddings", "tie_word_embeddings", default=False),
        activation("activation_function", "gelu_new"),
        ROTARY,
        always(parallel_residual=True, shared_norm=True, ffn_bias=True, lm_head_bias=True),
        must_be(rotary=True, scale_attn_weights=True),
    ),
    rules,
    gpt2.IGNORE,
    models="GPT-J 6B",
    harmless=("summary_*",),
)
