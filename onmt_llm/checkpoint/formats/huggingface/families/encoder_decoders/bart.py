"""BART and its relatives among the encoder-decoders: mBART, Pegasus, M2M100 (NLLB) and Marian (Opus-MT)."""

from __future__ import annotations

from dataclasses import replace

from onmt_llm.checkpoint.export_guard import WITH_DECODER, anything, where
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    block,
    both,
    heads,
    modules,
    must_be,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.ops import DropRows, Reshape
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

FEED_FORWARD = {"mlp_norm": "final_layer_norm", "mlp.up_proj": "fc1", "mlp.down_proj": "fc2"}


def attention(norm: str, ours: str, theirs: str) -> dict[str, str]:
    """Our names and theirs of an attention and its norm."""
    projections = {f"{ours}.{letter}_proj": f"{theirs}.{letter}_proj" for letter in "qkv"}
    return {norm: f"{theirs}_layer_norm", **projections, f"{ours}.o_proj": f"{theirs}.out_proj"}


ENCODER = {**attention("attn_norm", "self_attn", "self_attn"), **FEED_FORWARD}
DECODER = {**ENCODER, **attention("cross_norm", "cross_attn", "encoder_attn")}
ENDS = {"embed_tokens": "embed_tokens", "embed_norm": "layernorm_embedding", "norm": "layer_norm"}


def rules(config: ModelConfig) -> list[Rule]:
    """The rules for the tensors that any of the families may have; a model uses those of its own."""
    stacks = ("encoder", "decoder")
    ends = {f"{stack}.{ours}": f"model.{stack}.{theirs}" for stack in stacks for ours, theirs in ENDS.items()}
    if config.share_embeddings:
        ends["decoder.embed_tokens"] = "model.shared"
    positions = {f"{stack}.embed_positions": f"model.{stack}.embed_positions" for stack in stacks}
    bias = Reshape((1, config.vocab_size), (config.vocab_size,))
    return [
        *modules(ends),
        *modules(positions, DropRows(2)),
        rule("lm_head.weight", "lm_head.weight"),
        rule("lm_head.bias", "final_logits_bias", bias),
        *per_layer(block("model.encoder.layers", ENCODER, stack="encoder"), config.encoder_layers),
        *per_layer(block("model.decoder.layers", DECODER), config.decoder_layers),
    ]


def layout(**values: bool) -> Row:
    """Keys that older versions of transformers wrote, and that no version reads: they describe the family."""
    names = ("normalize_before", "add_final_layer_norm", "normalize_embedding", "static_position_embeddings")
    return must_be(**{name: values.get(name, False) for name in names})


def _read_vocabularies(hf: HfConfig) -> Values:
    """The vocabularies of Marian, which may be two."""
    shared, source = hf.get("share_encoder_decoder_embeddings", True), int(required(hf, "vocab_size"))
    target = source if shared else int(hf.get("decoder_vocab_size") or source)
    if shared:
        must_be(tie_word_embeddings=True).read(hf)
    return {
        "vocab_size": target,
        "src_vocab_size": None if source == target else source,
        "share_embeddings": shared,
        "tie_embeddings": hf.get("tie_word_embeddings", True),
    }


def _write_vocabularies(config: ModelConfig) -> Values:
    return {
        "vocab_size": config.encoder_vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.share_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
    }


SIZES = (
    setting("encoder_layers", "encoder_layers"),
    replace(setting("decoder_layers", "decoder_layers"), checks=WITH_DECODER),
    heads(hidden="d_model", count="encoder_attention_heads"),
    both("heads", "encoder_attention_heads", "decoder_attention_heads"),
    both("ffn_size", "encoder_ffn_dim", "decoder_ffn_dim"),
    setting("max_position", "max_position_embeddings", default=1024),
    always(norm_eps=1e-5, attn_bias=True, attn_out_bias=True, ffn_bias=True),
    must_be(is_encoder_decoder=True),
)
ONE_EMBEDDING = (
    setting("vocab_size", "vocab_size"),
    always(share_embeddings=True, tie_embeddings=True),
    must_be(tie_word_embeddings=True),
)
TWO_VOCABULARIES = Row(
    ("vocab_size", "decoder_vocab_size", "share_encoder_decoder_embeddings", "tie_word_embeddings"),
    _read_vocabularies,
    _write_vocabularies,
    {
        **anything("vocab_size", "src_vocab_size", "share_embeddings"),
        "tie_embeddings": where(
            lambda config: config.tie_embeddings or not config.share_embeddings, " with share_embeddings: true"
        ),
    },
)
GELU = (activation("activation_function", "gelu"), setting("scale_embeddings", "scale_embedding", default=False))
BIAS = Row((), lambda hf: {"lm_head_bias": True}, lambda config: {}, anything("lm_head_bias"))
LEARNED = always(position="learned", embed_norm=True)
SINUSOIDAL = always(position="sinusoidal", sinusoid="standard")
POST_NORM = always(norm_position="post")


def relative(model_type: str, architecture: str, models: str, *rows: Row) -> Family:
    """A family of which only the rows, beyond `SIZES`, differ from the others'."""
    return Family(
        model_type,
        architecture,
        (*SIZES, *rows),
        rules,
        ("model.*.embed_positions.weight*",),  # tables of sinusoids, which older files hold
        models=models,
        harmless=(
            *("init_std", "*_layerdrop", "num_hidden_layers", "add_bias_logits", "extra_pos_embeddings"),
            *("do_blenderbot_90_layernorm", "force_bos_token_to_be_generated"),
        ),
        embedding=("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
        optional={"final_logits_bias": "lm_head_bias"},
    )


M2M100 = relative(
    "m2m_100",
    "M2M100ForConditionalGeneration",
    "M2M100, NLLB-200 dense",
    *ONE_EMBEDDING,
    activation("activation_function", "relu"),
    setting("scale_embeddings", "scale_embedding", default=True),
    always(position="sinusoidal", sinusoid="fairseq"),
    must_be(pad_token_id=1),  # its positions begin at the next number
)
MARIAN = relative(
    "marian",
    "MarianMTModel",
    "Opus-MT",
    *(TWO_VOCABULARIES, *GELU, BIAS, SINUSOIDAL, POST_NORM, layout(static_position_embeddings=True)),
)
MBART = relative(
    "mbart",
    "MBartForConditionalGeneration",
    "mBART, mBART-50",
    *(*ONE_EMBEDDING, *GELU, BIAS, LEARNED),
    layout(normalize_before=True, add_final_layer_norm=True, normalize_embedding=True),
)
BART = relative(
    "bart",
    "BartForConditionalGeneration",
    "BART, DistilBART",
    *(*ONE_EMBEDDING, *GELU, BIAS, LEARNED, POST_NORM, layout(normalize_embedding=True)),
)
PEGASUS = relative(
    "pegasus",
    "PegasusForConditionalGeneration",
    "Pegasus",
    *(*ONE_EMBEDDING, *GELU, BIAS, SINUSOIDAL),
    layout(normalize_before=True, add_final_layer_norm=True, static_position_embeddings=True),
)
