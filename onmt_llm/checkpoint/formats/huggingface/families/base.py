"""`Family`: how one Hugging Face architecture maps to `ModelConfig` and to our tensors, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onmt_llm.checkpoint.export_guard import Check, anything
from onmt_llm.checkpoint.formats.rules import Rule
from onmt_llm.config.model import Activation, ModelConfig, RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

HfConfig = Mapping[str, Any]

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
HF_ACTIVATIONS: dict[Activation, str] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
}


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture.

    Attributes:
        model_type: As in `config.json`.
        to_model: `config.json` -> our architecture.
        to_hf: Our architecture -> `config.json`, without token ids and dtype.
        expressible: The settings of `ModelConfig` that the family can express (see `export_guard`).
        rules: The weight-name rules, with `{i}` filled in.
        ignore: Patterns of tensors to skip.
    """

    model_type: str
    to_model: Callable[[HfConfig], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    expressible: Mapping[str, Check]
    rules: Callable[[ModelConfig], list[Rule]]
    ignore: tuple[str, ...] = ()


def required(config: HfConfig, *keys: str) -> Any:
    """The value of the first of `keys` that is set (a key and its older names).

    Raises:
        CheckpointError: None is set.
    """
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise CheckpointError(f"config.json must have `{keys[0]}`, but does not.")


def activation(name: str) -> Activation:
    """Our name for a Hugging Face activation."""
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"The activation must be one of {', '.join(ACTIVATIONS)}, but is '{name}'.")
    return ACTIVATIONS[name]


def rope_from_hf(config: HfConfig, head_dim: int) -> RopeConfig:
    """Rotary settings: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (older).

    Raises:
        UnsupportedError: The kind of scaling is not supported.
    """
    settings = {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    theta = float(settings.get("rope_theta") or 10000.0)
    fraction = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    rotary_dim = None if fraction == 1.0 else int(head_dim * fraction)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return RopeConfig(theta=theta, rotary_dim=rotary_dim)
    if kind == "linear":
        return RopeConfig(theta=theta, rotary_dim=rotary_dim, scaling="linear", factor=required(settings, "factor"))
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            rotary_dim=rotary_dim,
            scaling="llama3",
            factor=required(settings, "factor"),
            low_freq_factor=required(settings, "low_freq_factor"),
            high_freq_factor=required(settings, "high_freq_factor"),
            original_max_position=required(settings, "original_max_position_embeddings"),
        )
    raise UnsupportedError(f"Rotary scaling must be default, linear or llama3, but is '{kind}'.")


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """`rope_parameters`, and the older keys for transformers 4."""
    scaling: dict[str, Any] = {}
    if rope.scaling != "none":
        scaling = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
        scaling["original_max_position_embeddings"] = rope.original_max_position
    return {
        "rope_parameters": {"rope_theta": rope.theta, "rope_type": "default", **scaling},
        "rope_theta": rope.theta,
        "rope_scaling": scaling or None,
    }


SIZES = anything(
    *("decoder_layers", "vocab_size", "hidden_size", "heads", "ffn_size", "activation", "norm_eps", "max_position"),
    *("tie_embeddings", "dtype", "rope.theta", "rope.scaling", "rope.factor", "rope.low_freq_factor"),
    *("rope.high_freq_factor", "rope.original_max_position"),
)
"""Settings that every family expresses."""
