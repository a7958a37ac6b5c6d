"""T5 in GGUF files: two stacks of blocks, `enc` and `dec`, which no other architecture has.

The activation has no key: T5 1.0 has ReLU without a gate, its successors have a gate and GELU by tanh. Nor has what the
input of the output layer is divided by: only the models whose output layer is the embedding, and T5 1.0, divide it.
"""

from __future__ import annotations

from collections.abc import Collection

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    HfConfig,
    Row,
    Values,
    always,
    block,
    heads,
    modules,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

START = "decoder_start_token_id"
_ENCODER, _DECODER = "block_count", "decoder_block_count"


def _read_layers(found: HfConfig) -> Values:
    encoder = required(found, _ENCODER)
    return {"encoder_layers": encoder, "decoder_layers": found.get(_DECODER, encoder)}


ROWS = (
    Row(
        (_ENCODER, _DECODER),
        _read_layers,
        lambda config: {_ENCODER: config.encoder_layers, _DECODER: config.decoder_layers},
        anything("encoder_layers", "decoder_layers"),
    ),
    heads(hidden="embedding_length", count="attention.head_count", head_dim="attention.key_length"),
    setting("ffn_size", "feed_forward_length"),
    setting("norm_eps", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
    setting("relative_buckets", "attention.relative_buckets_count"),
    always(position="t5", relative_max_distance=128, norm="rmsnorm", scale_attention=False, share_embeddings=True),
    Row(
        ("context_length", START),  # the biases reach any distance; the tokeniser reads the other
        lambda found: {},
        lambda config: {"context_length": 512},
        {
            "activation": where(lambda config: config.activation == _activation(gated=config.ffn_gated)),
            **anything("ffn_gated", "relative_shared", "tie_embeddings"),
            "scale_logits": where(
                lambda config: config.scale_logits == (config.tie_embeddings or not config.ffn_gated)
            ),
        },
    ),
)
_ATTENTION = {f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkvo"}
_FEED_FORWARD = {
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_CROSS = {
    "cross_norm": "cross_attn_norm",
    **{f"cross_attn.{letter}_proj": f"cross_attn_{letter}" for letter in "qkvo"},
}
UNUSED = ("dec.blk.*.cross_attn_rel_b.weight",)
"""Tensors that some files have and no model uses."""


def _activation(*, gated: bool) -> str:
    return "gelu_tanh" if gated else "relu"


def is_t5(names: Collection[str]) -> bool:
    """Whether the tensors are those of an encoder-decoder."""
    return "enc.blk.0.attn_norm.weight" in names


def shown_by_tensors(here: Collection[str]) -> Values:
    """Settings that show in which tensors there are."""
    gated, tied = "enc.blk.0.ffn_gate.weight" in here, "output.weight" not in here
    return {
        "ffn_gated": gated,
        "activation": _activation(gated=gated),
        "tie_embeddings": tied,
        "scale_logits": tied or not gated,
        "relative_shared": {"enc.blk.1.attn_rel_b.weight", "dec.blk.1.attn_rel_b.weight"}.isdisjoint(here),
    }


def rules(config: ModelConfig) -> list[Rule]:
    """Weight-name rules."""
    ends = {"decoder.embed_tokens": "token_embd", "lm_head": "output"}
    return [
        *modules({**ends, "encoder.norm": "enc.output_norm", "decoder.norm": "dec.output_norm"}),
        *_stack("encoder", "enc", {}, config.encoder_layers, shared=config.relative_shared),
        *_stack("decoder", "dec", _CROSS, config.decoder_layers, shared=config.relative_shared),
    ]


def _stack(ours: str, theirs: str, cross: dict[str, str], layers: int, *, shared: bool) -> list[Rule]:
    """The blocks of a stack, and its table of biases, which is in the first block if all share it."""
    names = {"attn_norm": "attn_norm", **_ATTENTION, **cross, **_FEED_FORWARD}
    table = f"{theirs}.blk.{{i}}.attn_rel_b.weight"
    if shared:
        bias = rule(f"{ours}.relative_bias.weight", table.format(i=0))
    else:
        bias = rule(f"{ours}.layers.{{i}}.self_attn.relative_bias.weight", table)
    return per_layer([*block(f"{theirs}.blk", names, stack=ours), bias], layers)
