"""Options of OpenNMT-py v3 checkpoints, and the architecture that they and the tensors define."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from onmt_llm.checkpoint.formats.imported import TypedSource, are_copies
from onmt_llm.config.model import Activation, FeatureConfig, ModelConfig, SinusoidKind
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.nn.positions import build_sinusoidal_table

EMBEDDINGS = "embeddings.make_embedding.emb_luts"
EMBEDDING = f"{EMBEDDINGS}.0"
POSITIONS = "embeddings.make_embedding.pe.pe"
MAX_POSITION = 5000
"""Rows of OpenNMT-py's table of absolute positions."""
ACTIVATIONS: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "silu": ("silu", True),
    "gated-gelu": ("gelu", True),
}
"""OpenNMT-py's names of activations: ours, and whether the feed-forward layer is gated."""


@dataclass(frozen=True)
class OpenNMTOptions:
    """The options of a checkpoint (its pickled Namespace). Options that an older version lacks get their default."""

    values: Mapping[str, Any]

    def get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def require(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise CheckpointError(f"The options of an OpenNMT-py checkpoint must have `{name}`, but do not.")
        return self.values[name]


def model_config(
    options: OpenNMTOptions, vocab: Mapping[str, Any], source: TypedSource, *, is_lora: bool
) -> ModelConfig:
    """The architecture. For a LoRA file, which lacks most tensors, it comes from the options alone.

    Raises:
        UnsupportedError: The model computes something that `Transformer` does not.
    """
    is_lm = options.get("model_task", "seq2seq") == "lm" or options.get("decoder_type", "") == "transformer_lm"
    _refuse_architecture(options, is_lm=is_lm)
    names = set(source.names())
    hidden = int(
        options.get("hidden_size", 0) if options.get("hidden_size", -1) > 0 else options.require("dec_hid_size")
    )
    heads = int(options.require("heads"))
    kv_heads = int(options.get("num_kv", 0)) or (1 if options.get("multiquery", False) else heads)
    activation, gated = ACTIVATIONS[options.get("pos_ffn_activation_fn", "relu")]
    parallel = bool(options.get("parallel_residual", False))
    rows = {
        side: _rows(f"{side}.{EMBEDDING}.weight", source, vocab["tgt" if side == "decoder" else "src"])
        for side in ("encoder", "decoder")
    }

    def bias(part: str, option: str) -> bool:
        return bool(options.get(option, False)) if is_lora else any(name.endswith(f"{part}.bias") for name in names)

    return ModelConfig(
        encoder_layers=0 if is_lm else _layers(options, "enc_layers"),
        decoder_layers=_layers(options, "dec_layers"),
        vocab_size=rows["decoder"],
        src_vocab_size=None if is_lm or rows["encoder"] == rows["decoder"] else rows["encoder"],
        hidden_size=hidden,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        ffn_size=options.require("transformer_ff"),
        ffn_gated=gated,
        activation=activation,
        norm="rmsnorm" if options.get("layer_norm", "standard") == "rms" else "layernorm",
        norm_eps=options.get("norm_eps", 1e-6),
        parallel_residual=parallel,
        shared_norm=parallel and bool(options.get("shared_layer_norm", False)),
        attn_bias=bias("linear_query", "add_qkvbias"),
        attn_out_bias=bias("final_linear", "add_qkvbias"),
        ffn_bias=bias("w_1", "add_ffnbias"),
        lm_head_bias="generator.bias" in names and bool(source.tensor("generator.bias").any()),
        sliding_window=_sliding_window(options),
        tie_embeddings=_is_tied(
            source,
            bool(options.get("share_decoder_embeddings", False)),
            "generator.weight",
            f"decoder.{EMBEDDING}.weight",
        ),
        share_embeddings=_is_tied(
            source,
            not is_lm and bool(options.get("share_embeddings", False)),
            f"encoder.{EMBEDDING}.weight",
            f"decoder.{EMBEDDING}.weight",
        ),
        src_features=[] if is_lm else _features(options, vocab, source),
        feat_merge="sum" if options.get("feat_merge", "concat") == "sum" else "concat",
        **_positions(options, source, hidden),
    )


def _refuse_architecture(options: OpenNMTOptions, *, is_lm: bool) -> None:
    """Raise one error that lists everything that `Transformer` does not compute."""
    refused = {
        # A language model has no encoder, whatever encoder_type says.
        "encoder_type": not is_lm and options.get("encoder_type", "transformer") != "transformer",
        "decoder_type": options.get("decoder_type", "transformer") not in ("transformer", "transformer_lm"),
        "copy_attn": bool(options.get("copy_attn", False)),
        "num_experts": int(options.get("num_experts", 0)) > 0,
        "pos_ffn_activation_fn": options.get("pos_ffn_activation_fn", "relu") not in ACTIVATIONS,
        "feat_merge": bool(options.get("n_src_feats", 0)) and options.get("feat_merge", "concat") == "mlp",
        "self_attn_type": options.get("self_attn_type", "scaled-dot") == "average",
        "generator_function": options.get("generator_function", "softmax") != "softmax",
        "parallel_residual": bool(options.get("parallel_residual", False)) and not is_lm,
        "quant_type": str(options.get("quant_type", "")).startswith("awq"),
    }
    found = [f"{name}: {options.get(name, None)}" for name, bad in refused.items() if bad]
    if found:
        raise UnsupportedError(f"The OpenNMT-py model computes something that is not supported ({', '.join(found)}).")


def _layers(options: OpenNMTOptions, name: str) -> int:
    own = int(options.get(name, -1))
    return own if own > 0 else int(options.require("layers"))


def _sliding_window(options: OpenNMTOptions) -> int | None:
    """Tokens that a token attends to. In OpenNMT-py: itself and `sliding_window` before it (`triu_(-W)`); <= 0 = all.

    OpenNMT-py trains and scores like this, so the weights expect it. Its decoding with a cache keeps one token less.
    """
    before = int(options.get("sliding_window", 0))
    return before + 1 if before > 0 else None


def _rows(name: str, source: TypedSource, tokens: list[str]) -> int:
    """Rows of an embedding, possibly more than the vocabulary has tokens. A LoRA file holds no embedding."""
    return source.shape(name)[0] if name in source.names() else len(tokens)


def _is_tied(source: TypedSource, option: bool, one: str, other: str) -> bool:
    """Whether two names share a matrix: the option says so, and the weights, if present, are equal."""
    names = source.names()
    if not option or one not in names or other not in names:
        return option
    return are_copies(source, one, other)


def alignment(options: OpenNMTOptions) -> dict[str, Any]:
    """Alignment settings for `CheckpointConfig`; empty if the options have their defaults."""
    chosen = {
        "alignment_layer": int(options.get("alignment_layer", -3)),
        "alignment_heads": int(options.get("alignment_heads", 0)),
        "full_context_alignment": bool(options.get("full_context_alignment", False)),
    }
    guided = float(options.get("lambda_align", 0.0)) > 0
    return chosen if guided or list(chosen.values()) != [-3, 0, False] else {}


def _features(options: OpenNMTOptions, vocab: Mapping[str, Any], source: TypedSource) -> list[FeatureConfig]:
    """Source features. If the file has no embeddings (LoRA), the options define their widths."""
    features = []
    for i, tokens in enumerate(feature_tokens(vocab)):
        name = f"encoder.{EMBEDDINGS}.{i + 1}.weight"
        if name in source.names():
            rows, size = source.shape(name)
        else:
            rows, size = len(tokens), _feature_size(options, len(tokens))
        features.append(FeatureConfig(vocab_size=rows, size=size))
    return features


def feature_tokens(vocab: Mapping[str, Any]) -> list[list[str]]:
    """Vocabularies of the source features: a list, or a dictionary in the first versions."""
    features = vocab.get("src_feats") or []
    return [list(tokens) for tokens in (features.values() if isinstance(features, Mapping) else features)]


def _feature_size(options: OpenNMTOptions, values: int) -> int:
    if options.get("feat_merge", "concat") == "sum":
        return int(options.require("src_word_vec_size"))
    size = int(options.get("feat_vec_size", -1))
    return size if size > 0 else int(values ** float(options.get("feat_vec_exponent", 0.7)))


def _positions(options: OpenNMTOptions, source: TypedSource, hidden: int) -> dict[str, Any]:
    """Position settings; OpenNMT-py adds sines and cosines to embeddings scaled by sqrt(D), and only to those."""
    relative = int(options.get("max_relative_positions", 0))
    absolute = bool(options.get("position_encoding", False))
    buckets = int(options.get("relative_positions_buckets", 0))
    if relative != 0 and absolute:
        raise UnsupportedError("Models with both position_encoding and max_relative_positions are not supported.")
    if buckets > 0:
        return {"position": "t5", "relative_buckets": buckets, "relative_max_distance": relative}
    if relative > 0:
        return {"position": "shaw", "relative_positions": relative}
    if relative == -1:
        theta = float(options.get("rotary_theta", 10000))
        return {
            "position": "rotary",
            "rope": RopeConfig(theta=theta, rotary_dim=int(options.get("rotary_dim", 0)) or None),
        }
    if relative == -2:
        return {"position": "alibi"}
    if not absolute:
        return {"position": "none"}
    sinusoid = sinusoid_of(options, source, hidden)
    if sinusoid is None:
        rows = source.shape(f"decoder.{POSITIONS}")[0]
        return {"position": "learned", "scale_embeddings": True, "max_position": rows}
    return {"position": "sinusoidal", "scale_embeddings": True, "sinusoid": sinusoid.kind}


@dataclass(frozen=True)
class Sinusoid:
    """A table of sines and cosines.

    Attributes:
        kind: Its wavelengths, as in `ModelConfig.sinusoid`.
        interleaved: Sines and cosines alternate; otherwise they are in halves.
    """

    kind: SinusoidKind
    interleaved: bool

    def table(self, rows: int, size: int) -> torch.Tensor:
        """(P, D) in float32."""
        table_PD = build_sinusoidal_table(size, rows, torch.device("cpu"), kind=self.kind)
        return torch.stack(table_PD.chunk(2, dim=1), dim=2).flatten(1) if self.interleaved else table_PD


INTERLEAVED = Sinusoid("standard", interleaved=True)
"""SinusoidalInterleaved."""
HALVES = Sinusoid("standard", interleaved=False)
"""Written by our exporter with concatenated features, whose dimensions must not be reordered."""
CONCAT = Sinusoid("concat", interleaved=False)
"""SinusoidalConcat."""
FAIRSEQ = Sinusoid("fairseq", interleaved=False)
"""Written by our exporter; OpenNMT-py adds any table that it finds."""
TABLES = {"concat": CONCAT, "fairseq": FAIRSEQ}
"""The tables whose order is the same on both sides, by `ModelConfig.sinusoid`."""


def sinusoid_of(options: OpenNMTOptions, source: TypedSource, hidden: int) -> Sinusoid | None:
    """The kind of the file's position table; None = an unknown table, or an order that ours cannot have.

    OpenNMT-py adds the table in the file, whatever the option says. Only without a table (LoRA) does the option count.
    """
    stated = options.get("position_encoding_type", "SinusoidalInterleaved")
    found: Sinusoid | None = INTERLEAVED if stated == "SinusoidalInterleaved" else CONCAT
    tables = [name for name in (f"encoder.{POSITIONS}", f"decoder.{POSITIONS}") if name in source.names()]
    for name in tables:
        table_PD = source.tensor(name).flatten(1).float()
        kinds = (INTERLEAVED, CONCAT, HALVES, FAIRSEQ)
        found = next((kind for kind in kinds if _is_table(table_PD, kind)), None)
        if found is None:
            return None
    # With concatenated features, the residual stream cannot be reordered: it would mix their dimensions.
    concatenated = bool(options.get("n_src_feats", 0)) and options.get("feat_merge", "concat") == "concat"
    if found == INTERLEAVED and concatenated:
        if not tables:
            raise UnsupportedError("The checkpoint must hold its table of positions (pe.pe), but does not.")
        return None
    return found


def _is_table(table_PD: torch.Tensor, kind: Sinusoid) -> bool:
    """Whether they are equal up to the rounding of float16, and of large angles in float32."""
    expected_PD = kind.table(*table_PD.shape)
    return bool(torch.allclose(table_PD, expected_PD, atol=5e-3, rtol=0))
