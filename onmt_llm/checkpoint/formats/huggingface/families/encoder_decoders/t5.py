"""T5, mT5 and UMT5: biases by relative position, RMSNorm, no other biases, and unscaled attention scores.

Which of them divide the input of the output layer by sqrt(d_model), and whether that layer is the embedding, differs:
T5 1.0 does and is; T5 1.1, Flan-T5, mT5 and MADLAD-400 do not and are not.
"""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import WITH_DECODER, anything, where
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
    required,
    setting,
)
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

EMBEDDING = ("shared.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
ENDS = {
    "decoder.embed_tokens": "shared",
    "encoder.norm": "encoder.final_layer_norm",
    "decoder.norm": "decoder.final_layer_norm",
    "lm_head": "lm_head",
}


def rules(config: ModelConfig) -> list[Rule]:
    encoder = {**_attention("attn_norm", "self_attn", "0", "SelfAttention"), **_ffn("1", config)}
    decoder = {
        **_attention("attn_norm", "self_attn", "0", "SelfAttention"),
        **_attention("cross_norm", "cross_attn", "1", "EncDecAttention"),
        **_ffn("2", config),
    }
    return [
        *modules(ENDS),
        *_stack("encoder", encoder, config.encoder_layers, config),
        *_stack("decoder", decoder, config.decoder_layers, config),
    ]


def _attention(norm: str, ours: str, layer: str, theirs: str) -> dict[str, str]:
    projections = {f"{ours}.{letter}_proj": f"{layer}.{theirs}.{letter}" for letter in "qkvo"}
    return {norm: f"{layer}.layer_norm", **projections}


def _ffn(layer: str, config: ModelConfig) -> dict[str, str]:
    up = {"mlp.gate_proj": "wi_0", "mlp.up_proj": "wi_1"} if config.ffn_gated else {"mlp.up_proj": "wi"}
    names = {**up, "mlp.down_proj": "wo"}
    return {
        "mlp_norm": f"{layer}.layer_norm",
        **{ours: f"{layer}.DenseReluDense.{theirs}" for ours, theirs in names.items()},
    }


def _stack(stack: str, names: dict[str, str], layers: int, config: ModelConfig) -> list[Rule]:
    """The blocks of a stack, and its table of biases, which is in the first block if all share it."""
    blocks = block(f"{stack}.block", {ours: f"layer.{theirs}" for ours, theirs in names.items()}, stack=stack)
    table = f"{stack}.block.{{i}}.layer.0.SelfAttention.relative_attention_bias.weight"
    if config.relative_shared:
        blocks.append(rule(f"{stack}.relative_bias.weight", table.format(i=0)))
    else:
        blocks.append(rule(f"{stack}.layers.{{i}}.self_attn.relative_bias.weight", table))
    return per_layer(blocks, layers)


ACTIVATION = activation("dense_act_fn", "gelu_new")


def _parts(name: str) -> Values:
    """The two keys that repeat parts of `feed_forward_proj`; its "gated-gelu" is the approximation by tanh."""
    act = name.removeprefix("gated-")
    return {"is_gated_act": act != name, "dense_act_fn": "gelu_new" if name == "gated-gelu" else act}


def _read_ffn(hf: HfConfig) -> Values:
    parts = _parts(str(hf.get("feed_forward_proj") or "relu"))
    must_be(**parts).read(hf)
    return {**ACTIVATION.read(parts), "ffn_gated": parts["is_gated_act"]}


def _write_ffn(config: ModelConfig) -> Values:
    act = ACTIVATION.write(config)["dense_act_fn"]
    name = f"gated-{act}" if config.ffn_gated else act
    return {"feed_forward_proj": "gated-gelu" if name == "gated-gelu_new" else name, **_parts(name)}


LAYERS = (
    setting("encoder_layers", "num_layers"),
    Row(
        ("num_decoder_layers",),
        lambda hf: {"decoder_layers": hf.get("num_decoder_layers") or required(hf, "num_layers")},
        lambda config: {"num_decoder_layers": config.decoder_layers},
        WITH_DECODER,
    ),
    setting("vocab_size", "vocab_size"),
    heads(hidden="d_model", count="num_heads", head_dim="d_kv", default=64),
    setting("ffn_size", "d_ff"),
    Row(
        ("feed_forward_proj", "dense_act_fn", "is_gated_act"),
        _read_ffn,
        _write_ffn,
        {
            **anything("activation"),
            "ffn_gated": where(lambda config: config.activation != "gelu" or not config.ffn_gated),
        },
    ),
    setting("norm_eps", "layer_norm_epsilon", default=1e-6),
    setting("relative_buckets", "relative_attention_num_buckets", default=32),
    setting("relative_max_distance", "relative_attention_max_distance", default=128),
    always(position="t5", norm="rmsnorm", scale_attention=False, share_embeddings=True),
    must_be(is_encoder_decoder=True),
)
IGNORE = ("decoder.block.*.layer.1.EncDecAttention.relative_attention_bias.weight",)
HARMLESS = (
    "dropout_rate",
    "classifier_dropout",
    "initializer_factor",
    "n_positions",
    "output_past",
    "scalable_attention",
)


def _tied(hf: HfConfig) -> bool:
    return hf.get("tie_word_embeddings") is not False


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    (
        *LAYERS,
        always(relative_shared=True),
        Row(
            ("tie_word_embeddings", "scale_decoder_outputs"),
            lambda hf: {"tie_embeddings": _tied(hf), "scale_logits": hf.get("scale_decoder_outputs", _tied(hf))},
            lambda config: {
                "tie_word_embeddings": config.tie_embeddings,
                "scale_decoder_outputs": config.scale_logits,
            },
            anything("tie_embeddings", "scale_logits"),
        ),
    ),
    rules,
    IGNORE,
    models="T5, T5 1.1, Flan-T5, MADLAD-400",
    harmless=HARMLESS,
    embedding=EMBEDDING,
)
MT5 = Family(
    "mt5",
    "MT5ForConditionalGeneration",
    (
        *LAYERS,
        always(relative_shared=True),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
    ),
    rules,
    IGNORE,
    models="mT5",
    harmless=HARMLESS,
    embedding=EMBEDDING,
)
UMT5 = Family(
    "umt5",
    "UMT5ForConditionalGeneration",
    (
        *LAYERS,
        always(relative_shared=False),
        Row(
            ("tie_word_embeddings",),
            lambda hf: {"tie_embeddings": _tied(hf), "scale_logits": _tied(hf)},
            lambda config: {"tie_word_embeddings": config.scale_logits},
            {
                "tie_embeddings": where(
                    lambda config: config.scale_logits or not config.tie_embeddings, " without scale_logits"
                ),
                **anything("scale_logits"),
            },
        ),
    ),
    rules,
    IGNORE,
    models="UMT5",
    harmless=HARMLESS,
    embedding=EMBEDDING,
)
