"""The options of OpenNMT-py v3 checkpoints, and the architecture that they and the tensors describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from onmt_llm.checkpoint.foreign import TypedSource
from onmt_llm.config.model import Activation, ModelConfig, RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

EMBEDDING = "embeddings.make_embedding.emb_luts.0"
ACTIVATIONS: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "silu": ("silu", True),
    "gated-gelu": ("gelu", True),
}
"""Activation by its name there, and whether the feed-forward layer is gated."""


@dataclass(frozen=True)
class Options:
    """The options of a checkpoint (its pickled Namespace); an option that an older version lacks has its default."""

    values: Mapping[str, Any]

    def get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def require(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise CheckpointError(f"The options of an OpenNMT-py checkpoint must have `{name}`, but have not.")
        return self.values[name]


def model_config(options: Options, vocab: Mapping[str, Any], source: TypedSource, *, is_lora: bool) -> ModelConfig:
    """The architecture; a LoRA file lacks the tensors that would say it, so its options must.

    Raises:
        UnsupportedError: OpenNMT-py computes something there that we do not.
    """
    _refuse_architecture(options)
    is_lm = options.get("model_task", "seq2seq") == "lm" or options.get("decoder_type", "") == "transformer_lm"
    names = set(source.names())
    hidden = int(
        options.get("hidden_size", 0) if options.get("hidden_size", -1) > 0 else options.require("dec_hid_size")
    )
    heads = int(options.require("heads"))
    kv_heads = int(options.get("num_kv", 0)) or heads
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
        sliding_window=int(options.get("sliding_window", 0)) or None,
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
        **_positions(options),
    )


def _refuse_architecture(options: Options) -> None:
    """Everything that OpenNMT-py can compute and we cannot, in one error."""
    refused = {
        "encoder_type": options.get("encoder_type", "transformer") not in ("transformer", "rnn")
        or (options.get("encoder_type", "transformer") == "rnn" and options.get("model_task", "seq2seq") != "lm"),
        "decoder_type": options.get("decoder_type", "transformer") not in ("transformer", "transformer_lm"),
        "copy_attn": bool(options.get("copy_attn", False)),
        "num_experts": int(options.get("num_experts", 0)) > 0,
        "max_relative_positions": int(options.get("max_relative_positions", 0)) > 0,
        "pos_ffn_activation_fn": options.get("pos_ffn_activation_fn", "relu") not in ACTIVATIONS,
        "relative_positions_buckets": int(options.get("relative_positions_buckets", 0)) > 0,
        "n_src_feats": bool(options.get("n_src_feats", 0)),
    }
    found = [f"{name}: {options.get(name, None)}" for name, bad in refused.items() if bad]
    if found:
        raise UnsupportedError(f"The OpenNMT-py model computes what ours cannot ({', '.join(found)}).")


def _layers(options: Options, name: str) -> int:
    own = int(options.get(name, -1))
    return own if own > 0 else int(options.require("layers"))


def _rows(name: str, source: TypedSource, tokens: list[str]) -> int:
    """Rows of an embedding, which may be more than the vocabulary has tokens; a LoRA file holds no embedding."""
    return source.shape(name)[0] if name in source.names() else len(tokens)


def _is_tied(source: TypedSource, option: bool, one: str, other: str) -> bool:
    """Whether two names are one matrix: the option says so, and the weights, where they are there, agree."""
    names = source.names()
    if not option or one not in names or other not in names:
        return option
    return torch.equal(source.tensor(one), source.tensor(other))


def _positions(options: Options) -> dict[str, Any]:
    """Position settings; OpenNMT-py adds sines and cosines to embeddings scaled by sqrt(D), and only to those."""
    relative = int(options.get("max_relative_positions", 0))
    absolute = bool(options.get("position_encoding", False))
    if relative != 0 and absolute:
        raise UnsupportedError("Models with both position_encoding and max_relative_positions are not supported.")
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
    if options.get("position_encoding_type", "SinusoidalInterleaved") == "SinusoidalInterleaved":
        return {"position": "sinusoidal", "scale_embeddings": True}
    # Another progression of wavelengths (tensor2tensor's): the table in the file is taken over as a learned one.
    return {"position": "learned", "scale_embeddings": True, "max_position": 5000}
