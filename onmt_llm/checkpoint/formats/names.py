"""Names of a decoder's modules in every format whose layers are like Llama's: one table, read in both directions.

A format with names of its own for some modules replaces their rules (`rules.overridden`), for example where q, k and v
are one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

from onmt_llm.checkpoint.formats.ops import Op
from onmt_llm.checkpoint.formats.rules import Rule, rule

_TABLE = """
ours                     hf                        gguf           meta             torchtune         litgpt
decoder.embed_tokens     model.embed_tokens        token_embd     tok_embeddings   tok_embeddings    transformer.wte
decoder.embed_positions  -                         position_embd  -                -                 -
decoder.embed_norm       -                         token_embd_norm -             -                -
decoder.norm             model.norm                output_norm    norm             norm              transformer.ln_f
lm_head                  lm_head                   output         output           output            lm_head
decoder.layers.{i}       model.layers.{i}          blk.{i}        layers.{i}       layers.{i}        transformer.h.{i}
.attn_norm               .input_layernorm          .attn_norm     .attention_norm  .sa_norm          .norm_1
.self_attn.q_proj        .self_attn.q_proj         .attn_q        .attention.wq    .attn.q_proj      -
.self_attn.k_proj        .self_attn.k_proj         .attn_k        .attention.wk    .attn.k_proj      -
.self_attn.v_proj        .self_attn.v_proj         .attn_v        .attention.wv    .attn.v_proj      -
.self_attn.q_norm        .self_attn.q_norm         .attn_q_norm   -                .attn.q_norm      .attn.norm_q
.self_attn.k_norm        .self_attn.k_norm         .attn_k_norm   -                .attn.k_norm      .attn.norm_k
.self_attn.o_proj        .self_attn.o_proj         .attn_output   .attention.wo    .attn.output_proj .attn.proj
.attn_out_norm           -                         .post_attention_norm -        -                -
.mlp_norm                .post_attention_layernorm .ffn_norm      .ffn_norm        .mlp_norm         .norm_2
.mlp.gate_proj           .mlp.gate_proj            .ffn_gate      .feed_forward.w1 .mlp.w1           .mlp.fc_1
.mlp.up_proj             .mlp.up_proj              .ffn_up        .feed_forward.w3 .mlp.w3           .mlp.fc_2
.mlp.down_proj           .mlp.down_proj            .ffn_down      .feed_forward.w2 .mlp.w2           .mlp.proj
.mlp_out_norm            -                         .post_ffw_norm -              -                -
"""
"""A column per format; names that begin with a dot continue that of the layer, and `-` is a module that it lacks."""


def _names() -> dict[str, dict[str, str]]:
    """For each format, its names of our modules."""
    (_, *formats), *rows = (line.split() for line in _TABLE.strip().splitlines())
    layer = next(row for row in rows if row[0].endswith("{i}"))
    table: dict[str, dict[str, str]] = {name: {} for name in formats}
    for row in rows:
        ours, *theirs = (own + name if name.startswith(".") else name for own, name in zip(layer, row, strict=True))
        for name, module in zip(formats, theirs, strict=True):
            if module != "-" and row is not layer:
                table[name][ours] = module
    return table


NAMES: Mapping[str, Mapping[str, str]] = _names()
"""Names by format, and by our name."""


def decoder_rules(format: str, ops: Mapping[str, Op] | None = None) -> list[Rule]:
    """Rules for the weight and the bias of each module, with `{i}` for the number of the layer.

    Args:
        format: A column of the table.
        ops: Operations by the end of our name of a module, such as `self_attn.q_proj`; others are the same there.
    """

    def op(module: str) -> Op | None:
        return next((op for end, op in (ops or {}).items() if module.endswith(end)), None)

    return [
        rule(f"{ours}.{kind}", f"{theirs}.{kind}", op(ours))
        for ours, theirs in NAMES[format].items()
        for kind in ("weight", "bias")
    ]
