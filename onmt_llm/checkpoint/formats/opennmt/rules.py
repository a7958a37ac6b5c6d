"""Weight-name rules of OpenNMT-py v3 checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from onmt_llm.checkpoint.formats.imported import TypedSource
from onmt_llm.checkpoint.formats.opennmt.options import (
    EMBEDDING,
    EMBEDDINGS,
    INTERLEAVED,
    POSITIONS,
    OpenNMTOptions,
    sinusoid_of,
)
from onmt_llm.checkpoint.formats.ops import Chain, Columns, Identity, InterleavedRotary, Op, Reshape
from onmt_llm.checkpoint.formats.rules import Rule, rule
from onmt_llm.config.model import ModelConfig

IDENTITY = Identity()


@dataclass(frozen=True)
class Layout:
    """Order of rows and columns in the file's tensors, and constant factors between them and ours.

    Attributes:
        rotary: From their order of rotary pairs to ours, on rows of q and k.
        hidden: From their order of the residual stream's dimensions to ours.
        embedding: Factor of the embeddings.
        query: Factor of the queries, on rows of q.
        head: Factor of the output layer's matrix.
    """

    rotary: Op = IDENTITY
    hidden: Op = IDENTITY
    embedding: Op = IDENTITY
    query: Op = IDENTITY
    head: Op = IDENTITY

    @classmethod
    def of(cls, options: OpenNMTOptions, config: ModelConfig, source: TypedSource) -> Layout:
        # Before the option existed (v3.5), rotary pairs were always interleaved.
        pairs = config.position == "rotary" and bool(options.get("rotary_interleave", True))
        sines = config.position == "sinusoidal" and sinusoid_of(options, source, config.hidden_size) == INTERLEAVED
        return cls(
            rotary=InterleavedRotary(config.size_per_head, config.rope.rotary_dim) if pairs else IDENTITY,
            hidden=InterleavedRotary(config.hidden_size) if sines else IDENTITY,
        )


def rules(config: ModelConfig, layout: Layout) -> list[Rule]:
    """Rules for encoder, decoder and generator. Rules for tensors that the model lacks are not used."""
    table: list[Rule] = []
    if config.encoder_layers:
        table += _stack("encoder", layout, config)
        for i in range(config.encoder_layers):
            ours, theirs = f"encoder.layers.{i}", f"encoder.transformer.{i}"
            table += _norm(f"{ours}.attn_norm", f"{theirs}.layer_norm", layout)
            table += _self_attention(f"{ours}.self_attn", f"{theirs}.self_attn", layout)
            table += _feed_forward(f"{ours}.mlp", f"{theirs}.feed_forward", config, layout)
            table += _norm(f"{ours}.mlp_norm", _second_norm(theirs, config), layout)
    if config.decoder_layers:
        table += _stack("decoder", layout, config)
        for i in range(config.decoder_layers):
            ours, theirs = f"decoder.layers.{i}", f"decoder.transformer_layers.{i}"
            table += _norm(f"{ours}.attn_norm", f"{theirs}.layer_norm_1", layout)
            table += _self_attention(f"{ours}.self_attn", f"{theirs}.self_attn", layout)
            table += _norm(f"{ours}.cross_norm", f"{theirs}.layer_norm_2", layout)
            table += _attention(f"{ours}.cross_attn", f"{theirs}.context_attn", layout, rotate=False)
            table += _feed_forward(f"{ours}.mlp", f"{theirs}.feed_forward", config, layout)
            table += _norm(f"{ours}.mlp_norm", _second_norm(theirs, config), layout)
        table += _linear("lm_head", "generator", columns=Chain((layout.hidden, layout.head)))
    return table


def _stack(side: str, layout: Layout, config: ModelConfig) -> list[Rule]:
    size = config.hidden_size
    embedding = Columns(Chain((layout.hidden, layout.embedding)))
    positions = Chain((Reshape((-1, 1, size), (-1, size)), Columns(layout.hidden)))
    features = range(len(config.src_features) if side == "encoder" else 0)
    return [
        rule(f"{side}.embed_tokens.weight", f"{side}.{EMBEDDING}.weight", embedding),
        rule(f"{side}.embed_tokens.lora_a", f"{side}.{EMBEDDING}.lora_A"),
        rule(f"{side}.embed_tokens.lora_b", f"{side}.{EMBEDDING}.lora_B", layout.hidden),
        *(
            rule(f"{side}.embed_features.{i}.weight", f"{side}.{EMBEDDINGS}.{i + 1}.weight", embedding)
            for i in features
        ),
        rule(f"{side}.embed_positions.weight", f"{side}.{POSITIONS}", positions),
        *_norm(f"{side}.norm", f"{side}.layer_norm", layout),
    ]


def _norm(ours: str, theirs: str, layout: Layout) -> list[Rule]:
    return [rule(f"{ours}.{kind}", f"{theirs}.{kind}", layout.hidden) for kind in ("weight", "bias")]


def _second_norm(layer: str, config: ModelConfig) -> str:
    return f"{layer}.layer_norm_res" if config.parallel_residual else f"{layer}.feed_forward.layer_norm"


def _linear(ours: str, theirs: str, *, rows: Op | None = None, columns: Op | None = None) -> list[Rule]:
    """A linear layer and its LoRA: A has the layer's columns, B its rows."""
    rows, columns = rows or Identity(), columns or Identity()
    return [
        rule(f"{ours}.weight", f"{theirs}.weight", Chain((rows, Columns(columns)))),
        rule(f"{ours}.bias", f"{theirs}.bias", rows),
        rule(f"{ours}.lora_a", f"{theirs}.lora_A", Columns(columns)),
        rule(f"{ours}.lora_b", f"{theirs}.lora_B", rows),
    ]


def _self_attention(ours: str, theirs: str, layout: Layout) -> list[Rule]:
    return [
        *_attention(ours, theirs, layout),
        rule(f"{ours}.embed_relative.weight", f"{theirs}.relative_positions_embeddings.weight"),
        rule(f"{ours}.relative_bias.weight", f"{theirs}.relative_attention_bias.weight"),
    ]


def _attention(ours: str, theirs: str, layout: Layout, *, rotate: bool = True) -> list[Rule]:
    rotary = layout.rotary if rotate else Identity()
    query = Chain((rotary, layout.query))
    return [
        *_linear(f"{ours}.q_proj", f"{theirs}.linear_query", rows=query, columns=layout.hidden),
        *_linear(f"{ours}.k_proj", f"{theirs}.linear_keys", rows=rotary, columns=layout.hidden),
        *_linear(f"{ours}.v_proj", f"{theirs}.linear_values", columns=layout.hidden),
        *_linear(f"{ours}.o_proj", f"{theirs}.final_linear", rows=layout.hidden),
    ]


def _feed_forward(ours: str, theirs: str, config: ModelConfig, layout: Layout) -> list[Rule]:
    """w_1 is the input of the activation (the gate of a gated layer); w_3 is what the gate multiplies."""
    down = _linear(f"{ours}.down_proj", f"{theirs}.w_2", rows=layout.hidden)
    if not config.ffn_gated:
        return [*_linear(f"{ours}.up_proj", f"{theirs}.w_1", columns=layout.hidden), *down]
    gate = _linear(f"{ours}.gate_proj", f"{theirs}.w_1", columns=layout.hidden)
    return [*gate, *_linear(f"{ours}.up_proj", f"{theirs}.w_3", columns=layout.hidden), *down]
