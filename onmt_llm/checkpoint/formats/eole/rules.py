"""Weight-name rules of eole's models. Encoder and decoder have the same names; rotary pairs, and sines and cosines, may
alternate as in OpenNMT-py, so that rows and columns are reordered (see `formats.opennmt.read`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onmt_llm.checkpoint.formats.eole.settings import key_factor
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig
from onmt_llm.checkpoint.formats.ops import IDENTITY, Chain, Columns, InterleavedRotary, Offset, Op, Scale
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, repeated, rule
from onmt_llm.config.model import ModelConfig

LAYER, THEIR_LAYER = "decoder.layers.{i}", "decoder.transformer_layers.{i}"
STACK = {
    "decoder.embed_tokens": "tgt_emb.embeddings",
    "decoder.embed_positions": "tgt_emb.pe",
    "decoder.norm": "decoder.layer_norm",
    "lm_head": "generator",
}
BLOCK = {
    "attn_norm": "input_layernorm",
    "self_attn.q_norm": "self_attn.q_norm",
    "self_attn.k_norm": "self_attn.k_norm",
    "cross_norm": "precontext_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate_proj": "mlp.gate_up_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
ATTENTION = {"q_proj": "linear_query", "k_proj": "linear_keys", "v_proj": "linear_values", "o_proj": "final_linear"}
RELATIVE = {
    "self_attn.embed_relative": "self_attn.relative_positions_embeddings",
    "self_attn.relative_bias": "self_attn.relative_attention_bias",
}
BOTH_NORMS = {
    "attn_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
EXPERTS = {
    "mlp.router": "mlp.gate",
    "mlp.shared_gate": "mlp.shared_expert_gate",
    **{
        f"mlp.{ours}.{name}_proj": f"mlp.{theirs}.{other}_proj"
        for ours, theirs in {"experts.{e}": "experts.{e}", "shared_expert": "shared_experts"}.items()
        for name, other in {"gate": "gate_up", "up": "up", "down": "down"}.items()
    },
}
IGNORE = ("src_emb.pe.pe", "tgt_emb.pe.pe", "mtp_heads.*", "*.layer_scalar", "*.inv_freq")
"""Computed tables, and what the model does not compute its logits with."""


@dataclass(frozen=True)
class _Layout:
    """Order of rows and columns, and what differs from ours by a number.

    Attributes:
        rotary: From their order of rotary pairs to ours.
        hidden: From their order of the residual stream's dimensions to ours.
        key: Factor of the keys.
        norm: Offset of the weights of norms.
    """

    rotary: Op
    hidden: Op
    key: Op
    norm: Op


def _layout(config: ModelConfig, found: HfConfig) -> _Layout:
    pairs = config.position == "rotary" and bool(found.get("rope.rotary_interleave", True))
    sines = config.position == "sinusoidal" and config.sinusoid == "standard"
    factor = key_factor(found, config)
    return _Layout(
        rotary=InterleavedRotary(config.size_per_head, config.rope.rotary_dim) if pairs else IDENTITY,
        hidden=InterleavedRotary(config.hidden_size) if sines else IDENTITY,
        key=IDENTITY if factor == 1.0 else Scale(factor),
        norm=Offset(1.0) if found.get("layer_norm") == "gemma-rms" else IDENTITY,
    )


def rules(config: ModelConfig, found: HfConfig) -> list[Rule]:
    """The rules of a model.

    Args:
        config: The architecture.
        found: The settings of the decoder.
    """
    layout = _layout(config, found)
    names = _decoder_names(config)
    encoder = _encoder_names(names) if config.encoder_layers else {}
    if config.share_embeddings:
        names["decoder.embed_tokens"] = "src_emb.embeddings"
    table: list[Rule] = []
    for modules, count in ((encoder, config.encoder_layers), (names, config.decoder_layers)):
        rows = [
            rule(f"{ours}.{kind}", f"{theirs}.{kind}", _op(ours, kind, layout))
            for ours, theirs in modules.items()
            for kind in ("weight", "bias")
        ]
        table += per_layer(repeated(rows, "{e}", config.moe.experts), count)
    return table


def _decoder_names(config: ModelConfig) -> dict[str, str]:
    """Our names of modules, and theirs."""
    own = BLOCK | RELATIVE | EXPERTS
    for ours, theirs in {"self_attn": "self_attn", "cross_attn": "context_attn"}.items():
        own |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in ATTENTION.items()}
    if config.norm_position == "both":
        own |= BOTH_NORMS
    elif config.parallel_residual:
        own["mlp_norm"] = "residual_layernorm"
    if not config.ffn_gated:
        own["mlp.up_proj"] = "mlp.gate_up_proj"
    return {**STACK, **{f"{LAYER}.{ours}": f"{THEIR_LAYER}.{theirs}" for ours, theirs in own.items()}}


def _encoder_names(names: Mapping[str, str]) -> dict[str, str]:
    """The names in the encoder, which are those in the decoder."""
    return {
        ours.replace("decoder", "encoder"): theirs.replace("decoder", "encoder").replace("tgt_emb", "src_emb")
        for ours, theirs in names.items()
        if ".cross_" not in ours and ours != "lm_head"
    }


def _op(module: str, kind: str, layout: _Layout) -> Op:
    """What is done to the weight or the bias of a module."""
    name = module.rpartition(".")[2]
    if name.endswith("norm"):
        return Chain((layout.rotary if name in ("q_norm", "k_norm") else layout.hidden, layout.norm))
    rows: list[Op] = []
    if name in ("q_proj", "k_proj") and ".self_attn." in module:
        rows.append(layout.rotary)
    if name == "k_proj":
        rows.append(layout.key)
    if name in ("o_proj", "down_proj"):
        rows.append(layout.hidden)
    reads_hidden = name not in ("o_proj", "down_proj", "embed_relative", "relative_bias")
    return Chain((*rows, Columns(layout.hidden))) if kind == "weight" and reads_hidden else Chain(tuple(rows))
