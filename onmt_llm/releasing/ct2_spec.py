"""A `ModelConfig` as a CTranslate2 spec: what it can express, the empty spec, and the tensors of each variable.

CTranslate2's OpenNMT-py converter supports neither a rotary base, partial rotary positions nor a parallel residual; for
encoder-decoder models, neither RMSNorm, gated layers, rotary positions nor grouped heads; and it needs a pickle. So the
spec is built here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ctranslate2
import numpy as np
import torch
from ctranslate2 import specs
from ctranslate2.specs import common_spec

from onmt_llm.checkpoint.export_guard import WITH_DECODER, anything, only, where, without_experts
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.positions import build_sinusoidal_table
from onmt_llm.releasing.number_format import INT8

StorageKind = Literal["matrix", "vector"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1}

_ACTIVATIONS = {
    "relu": common_spec.Activation.RELU,
    "gelu": common_spec.Activation.GELU,
    "gelu_tanh": common_spec.Activation.GELUTanh,
    "silu": common_spec.Activation.SWISH,
}
_ROPE_SCALING = {
    "linear": specs.attention_spec.RotaryScalingType.Linear,
    "llama3": specs.attention_spec.RotaryScalingType.Llama3,
}
HAS_TABLE_PER_LAYER = [int(number) for number in re.findall(r"\d+", ctranslate2.__version__)] >= [4, 8, 3]
_LARGEST_VARIABLE = 2**32 - 1
"""CTranslate2's file format counts a variable's bytes in 32 bits."""


@dataclass(frozen=True)
class SpecVariable:
    """One variable of a CTranslate2 spec.

    Attributes:
        target: Path in the spec.
        sources: Our tensors, concatenated along rows; none = `make` computes it.
        factor: What they are multiplied by.
        kind: A "matrix" is quantised, a "vector" is not.
        make: Computes a variable that has no tensor.
    """

    target: str
    sources: tuple[str, ...] = ()
    kind: StorageKind = "vector"
    make: functools.partial[np.ndarray] | None = None
    factor: float = 1.0

    @property
    def layers(self) -> list[str]:
        """Paths of the layers that a matrix belongs to; a tied output layer is one too."""
        if self.target == "decoder/projection/weight":
            return ["lm_head"]
        return [source.removesuffix(".weight") for source in self.sources]

    @property
    def is_embedding(self) -> bool:
        """Whether rows are looked up in it, even if it is an output layer too."""
        return any(".embed_" in source for source in self.sources)


def stored_type(quantization: str, kind: StorageKind) -> str:
    """Type in which CTranslate2 stores matrices and vectors for a quantisation."""
    if kind == "matrix":
        return "int8" if quantization in INT8 else quantization
    half = quantization.removeprefix("int8_")
    return half if half in ("float16", "bfloat16") else "float32"


def _position(position: str, config: ModelConfig) -> str | None:
    if position == "none":
        return ", and CTranslate2 always encodes positions"
    if position == "t5" and config.is_decoder_only:
        return " without an encoder, and CTranslate2 computes other distances for the tokens of a prompt"
    if position == "alibi" and not config.is_decoder_only:
        return ", which CTranslate2's encoders do not know"
    return None


def _has_several_tables(config: ModelConfig) -> bool:
    return config.position == "t5" and max(config.encoder_layers, config.decoder_layers) > 1


def _rope_scaling(scaling: str, config: ModelConfig) -> str | None:
    if scaling == "longrope":
        return ", and after a text beyond the original context CTranslate2 keeps the long factors for shorter ones too"
    return None if scaling in ("none", *_ROPE_SCALING) else ""


def _sliding_window(window: int | None, config: ModelConfig) -> str | None:
    if window is not None and not config.is_decoder_only:
        return ", which CTranslate2 does not apply beside an encoder"
    if window == 1:
        return ", and a release is compared with its model on at least 2 tokens"
    return None


EXPRESSIBLE = {
    **anything(
        *("encoder_layers", "vocab_size", "src_vocab_size", "hidden_size", "heads", "kv_heads", "head_dim", "ffn_size"),
        *("ffn_gated", "norm", "norm_eps", "norm_bias", "max_position", "rope.theta"),
        *("rope.rotary_dim", "rope.factor", "rope.low_freq_factor", "rope.high_freq_factor"),
        *("rope.original_max_position", "sinusoid", "relative_positions", "relative_buckets", "relative_max_distance"),
        *("alibi_scaled", "parallel_residual", "shared_norm", "scale_attention", "attention_scale", "attn_bias"),
        *("attn_out_bias", "ffn_bias", "lm_head_bias", "scale_embeddings", "embed_norm", "scale_logits"),
        *("src_features", "feat_merge", "tie_embeddings", "share_embeddings", "dtype"),
        *("embedding_scale", "logit_scale", "logit_softcap", "layer_types", "rope.local_theta"),
    ),
    "activation": only(*_ACTIVATIONS),
    "rope.scaling": _rope_scaling,
    **WITH_DECODER,
    **without_experts(", and CTranslate2 has no mixture of experts"),
    "norm_position": where(
        lambda config: config.norm_position in ("pre", "post", *["both"] * config.is_decoder_only),
        ", which CTranslate2 does not compute in such a model",
    ),
    "residual_scale": where(
        lambda config: config.residual_scale == 1.0 or config.norm_position != "both",
        " with norm_position: both, and CTranslate2 has no such factor after a norm",
    ),
    "attention_softcap": where(
        lambda config: config.attention_softcap is None, ", and CTranslate2 does not cap attention scores"
    ),
    "position": _position,
    "rope_layers": where(
        lambda config: not config.rope_layers or config.rope_layers[0],
        ", and CTranslate2 encodes positions in another way if the first layer does not rotate",
    ),
    "relative_shared": where(
        lambda config: HAS_TABLE_PER_LAYER or config.relative_shared or not _has_several_tables(config),
        ", and CTranslate2 before 4.8.3 uses the first layer's table of biases in all layers of a stack",
    ),
    "sliding_window": _sliding_window,
    "qk_norm": where(
        lambda config: not config.qk_norm or config.is_decoder_only,
        ", which CTranslate2 leaves out of the attention to the source",
    ),
}
"""What a spec can express."""


def oversized(config: ModelConfig, quantization: str) -> str | None:
    """An obstacle: a matrix is larger than the file format allows; None if all fit."""
    width = config.hidden_size * BYTES[stored_type(quantization, "matrix")]
    largest = width * max(config.vocab_size, config.encoder_vocab_size, config.ffn_size)
    if largest <= _LARGEST_VARIABLE:
        return None
    return f"its largest matrix has {largest:,} bytes in {quantization}, but a file holds at most {_LARGEST_VARIABLE:,}"


def build_spec(config: ModelConfig) -> Any:
    """An empty `TransformerDecoderModelSpec` or `TransformerSpec` of this architecture."""
    decoder = _build_decoder(config)
    if config.is_decoder_only:
        return specs.TransformerDecoderModelSpec(decoder)
    return specs.TransformerSpec(_build_encoder(config), decoder)


def _shared_arguments(config: ModelConfig) -> dict[str, Any]:
    """Arguments that encoder and decoder specs share."""
    shape: dict[str, Any] = {
        "pre_norm": config.norm_position != "post",
        "activation": _ACTIVATIONS[config.activation],
        "relative_position": config.position == "shaw",
        "relative_attention_bias": config.position == "t5",
        "ffn_glu": config.ffn_gated,
        "rms_norm": config.norm == "rmsnorm",
        "num_heads_kv": config.num_kv_heads if config.num_kv_heads != config.heads else None,
        "head_dim": config.size_per_head,
        "qk_norm": config.qk_norm,
        "layernorm_embedding": config.embed_norm,
    }
    if config.position == "rotary":
        shape |= {
            "rotary_dim": config.rotary_size,
            "rotary_interleave": False,
            "rotary_base": config.rope.theta,
            "rotary_scaling_type": _ROPE_SCALING.get(config.rope.scaling),
            "rotary_scaling_factor": config.rope.factor,
        }
    return shape


def _embedding_scale(config: ModelConfig) -> np.float32 | bool:
    """A number; False = 1, for which nothing is computed."""
    return np.float32(config.embedding_factor) if config.embedding_factor != 1.0 else False


def _build_encoder(config: ModelConfig) -> Any:
    merge = common_spec.EmbeddingsMerge.CONCAT if config.feat_merge == "concat" else common_spec.EmbeddingsMerge.ADD
    spec = specs.TransformerEncoderSpec(
        config.encoder_layers,
        config.heads,
        num_source_embeddings=1 + len(config.src_features),
        embeddings_merge=merge,
        **_shared_arguments(config),
    )
    spec.scale_embeddings = _embedding_scale(config)
    for layer in spec.layer:
        _complete_attention(layer.self_attention, config)
    return spec


def _build_decoder(config: ModelConfig) -> Any:
    spec = specs.TransformerDecoderSpec(
        config.decoder_layers,
        config.heads,
        with_encoder_attention=not config.is_decoder_only,
        alibi=config.position == "alibi",
        scale_alibi=config.alibi_scaled,
        parallel_residual=config.parallel_residual,
        shared_layer_norm=config.shared_norm,
        pre_post_layer_norm=config.norm_position == "both",
        sliding_window=config.sliding_window,
        **_shared_arguments(config),
    )
    spec.scale_embeddings = _embedding_scale(config)
    if config.logit_factor != 1.0:
        spec.scale_outputs = np.float32(config.logit_factor)
    if config.logit_softcap is not None:
        spec.final_logit_softcapping = np.float32(config.logit_softcap)
    for number, layer in enumerate(spec.layer):
        _complete_layer(layer, config)
        _set_type(layer.self_attention, config, number)
    return spec


def _complete_layer(layer: Any, config: ModelConfig) -> None:
    """Set what the library's constructor of a decoder layer leaves out."""
    if config.parallel_residual and config.norm == "rmsnorm":
        for name in ("shared_layer_norm",) if config.shared_norm else ("input_layer_norm", "post_attention_layer_norm"):
            setattr(layer, name, common_spec.LayerNormSpec(rms_norm=True))
    _complete_attention(layer.self_attention, config)
    if not config.is_decoder_only:
        layer.attention.queries_scale = np.float32(config.attention_factor)


def _complete_attention(attention: Any, config: ModelConfig) -> None:
    """Set what the library's constructor of self-attention leaves out."""
    attention.queries_scale = np.float32(config.attention_factor)
    if config.position == "t5":
        attention.relative_attention_max_distance = np.int32(config.relative_max_distance)
    if config.position == "rotary" and config.rope.scaling == "llama3":
        rope = config.rope
        attention.rotary_low_freq_factor = np.float32(rope.low_freq_factor)
        attention.rotary_high_freq_factor = np.float32(rope.high_freq_factor)
        # The library reads these attributes for llama3 too, but declares them only for linear scaling, or for decoders
        # only; specs refuse undeclared names.
        object.__setattr__(attention, "rotary_scaling_factor", np.float32(rope.factor))
        object.__setattr__(attention, "original_max_position_embeddings", np.int32(rope.original_max_position))


def _set_type(attention: Any, config: ModelConfig, layer: int) -> None:
    """Set what differs between the layers of a decoder: the window, and the rotary positions."""
    if config.decoder_types[layer] == "full_attention":
        if config.sliding_window is not None:
            attention.sliding_window = np.int32(0)
    elif config.position == "rotary" and config.rope.local_theta is not None:
        attention.rotary_base = np.float32(config.rope.local_theta)
        _remove(attention, "rotary_scaling", "rotary_low", "rotary_high", "original_max_position")
    if config.rope_layers and not config.rope_layers[layer]:
        _remove(attention, "rotary_", "original_max_position")


def _remove(spec: Any, *beginnings: str) -> None:
    """Remove the attributes whose names begin so."""
    for name in [name for name in vars(spec) if name.startswith(beginnings)]:
        delattr(spec, name)


def spec_variables(config: ModelConfig) -> list[SpecVariable]:
    """All variables of a model's spec, with the tensors that they are made of."""
    embedding = "decoder.embed_tokens.weight"
    output = embedding if config.tie_embeddings else "lm_head.weight"
    variables = [
        SpecVariable("decoder/embeddings/weight", (embedding,), "matrix"),
        SpecVariable("decoder/projection/weight", (output,), "matrix"),
    ]
    if config.lm_head_bias:
        variables.append(SpecVariable("decoder/projection/bias", ("lm_head.bias",)))
    variables += _stack(config, "decoder", config.decoder_layers)
    if config.encoder_layers:
        source = embedding if config.share_embeddings else "encoder.embed_tokens.weight"
        sources = (source, *(f"encoder.embed_features.{i}.weight" for i in range(len(config.src_features))))
        variables += [
            SpecVariable(f"encoder/embeddings_{i}/weight", (name,), "matrix") for i, name in enumerate(sources)
        ]
        variables += _stack(config, "encoder", config.encoder_layers)
    return variables


def _stack(config: ModelConfig, side: str, layers: int) -> Iterator[SpecVariable]:
    """Positions, final norm and layers of the encoder or of the decoder."""
    if config.position == "learned":
        yield SpecVariable(f"{side}/position_encodings/encodings", (f"{side}.embed_positions.weight",))
    elif config.position == "sinusoidal":
        # CTranslate2's sinusoids start at position 1 and have another spacing, so ours are stored.
        yield SpecVariable(f"{side}/position_encodings/encodings", make=functools.partial(_sinusoids, config))
    if config.embed_norm:
        yield from _norm(config, f"{side}/layernorm_embedding", f"{side}.embed_norm")
    if config.norm_position != "post":
        yield from _norm(config, f"{side}/layer_norm", f"{side}.norm")
    for layer in range(layers):
        yield from _layer(config, f"{side}/layer_{layer}", f"{side}.layers.{layer}")
        if config.position == "t5":
            own = f"{side}.layers.{layer}.self_attn.relative_bias.weight"
            table = f"{side}.relative_bias.weight" if config.relative_shared else own
            yield SpecVariable(f"{side}/layer_{layer}/self_attention/relative_attention_bias", (table,))


def _layer(config: ModelConfig, target: str, source: str) -> Iterator[SpecVariable]:
    attn, mlp = f"{source}.self_attn", f"{source}.mlp"
    qkv = (f"{attn}.q_proj", f"{attn}.k_proj", f"{attn}.v_proj")
    yield from _linear(f"{target}/self_attention/linear_0", qkv, bias=config.attn_bias)
    yield from _output(config, f"{target}/self_attention/linear_1", f"{attn}.o_proj", bias=config.attn_out_bias)
    yield from _head_norms(config, f"{target}/self_attention", attn)
    if config.position == "shaw":
        for part in ("keys", "values"):
            yield SpecVariable(f"{target}/self_attention/relative_position_{part}", (f"{attn}.embed_relative.weight",))
    if config.encoder_layers and target.startswith("decoder"):
        yield from _cross_attention(config, f"{target}/attention", f"{source}.cross_attn")
        yield from _norm(config, f"{target}/attention/layer_norm", f"{source}.cross_norm")
    if config.ffn_gated:
        yield from _linear(f"{target}/ffn/linear_0", (f"{mlp}.gate_proj",), bias=config.ffn_bias)
        yield from _linear(f"{target}/ffn/linear_0_noact", (f"{mlp}.up_proj",), bias=config.ffn_bias)
    else:
        yield from _linear(f"{target}/ffn/linear_0", (f"{mlp}.up_proj",), bias=config.ffn_bias)
    yield from _output(config, f"{target}/ffn/linear_1", f"{mlp}.down_proj", bias=config.ffn_bias)
    if config.shared_norm:
        yield from _norm(config, f"{target}/shared_layer_norm", f"{source}.attn_norm")
    elif config.parallel_residual:
        yield from _norm(config, f"{target}/input_layer_norm", f"{source}.attn_norm")
        yield from _norm(config, f"{target}/post_attention_layer_norm", f"{source}.mlp_norm")
    elif config.norm_position == "both":
        yield from _norm(config, f"{target}/input_layer_norm", f"{source}.attn_norm")
        yield from _norm(config, f"{target}/post_attention_layer_norm", f"{source}.attn_out_norm")
        yield from _norm(config, f"{target}/pre_feedforward_layer_norm", f"{source}.mlp_norm")
        yield from _norm(config, f"{target}/post_feedforward_layer_norm", f"{source}.mlp_out_norm")
    else:
        yield from _norm(config, f"{target}/self_attention/layer_norm", f"{source}.attn_norm")
        yield from _norm(config, f"{target}/ffn/layer_norm", f"{source}.mlp_norm")


def _cross_attention(config: ModelConfig, target: str, source: str) -> Iterator[SpecVariable]:
    yield from _linear(f"{target}/linear_0", (f"{source}.q_proj",), bias=config.attn_bias)
    yield from _linear(f"{target}/linear_1", (f"{source}.k_proj", f"{source}.v_proj"), bias=config.attn_bias)
    yield from _output(config, f"{target}/linear_2", f"{source}.o_proj", bias=config.attn_out_bias)
    yield from _head_norms(config, target, source)


def _head_norms(config: ModelConfig, target: str, source: str) -> Iterator[SpecVariable]:
    if config.qk_norm:
        yield SpecVariable(f"{target}/q_norm/gamma", (f"{source}.q_norm.weight",))
        yield SpecVariable(f"{target}/k_norm/gamma", (f"{source}.k_norm.weight",))


def _linear(target: str, sources: tuple[str, ...], *, bias: bool, factor: float = 1.0) -> Iterator[SpecVariable]:
    yield SpecVariable(f"{target}/weight", tuple(f"{source}.weight" for source in sources), "matrix", factor=factor)
    if bias:
        yield SpecVariable(f"{target}/bias", tuple(f"{source}.bias" for source in sources), factor=factor)


def _output(config: ModelConfig, target: str, source: str, *, bias: bool) -> Iterator[SpecVariable]:
    """The last layer of a sub-layer, with `residual_scale`, which the library does not know, in its weights."""
    yield from _linear(target, (source,), bias=bias, factor=config.residual_scale)


def _norm(config: ModelConfig, target: str, source: str) -> Iterator[SpecVariable]:
    yield SpecVariable(f"{target}/gamma", (f"{source}.weight",))
    if config.norm == "layernorm" and config.norm_bias:
        yield SpecVariable(f"{target}/beta", (f"{source}.bias",))
    elif config.norm == "layernorm":
        # CTranslate2 takes a norm without beta for an RMSNorm.
        yield SpecVariable(f"{target}/beta", make=functools.partial(np.zeros, config.hidden_size, dtype=np.float32))


def _sinusoids(config: ModelConfig) -> np.ndarray:
    cpu = torch.device("cpu")
    return build_sinusoidal_table(config.hidden_size, config.max_position, cpu, kind=config.sinusoid).numpy()
