"""Rows of the map between a Hugging Face `config.json` and `ModelConfig`.

A row is read forwards on import and written backwards on export; its checks say which of our settings it expresses. So
the three uses of a map (`to_model`, `to_hf`, `expressible` of a `Family`) are one list of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onmt_llm.checkpoint.export_guard import Check, anything, only, where
from onmt_llm.config.model import Activation, ModelConfig, RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

HfConfig = Mapping[str, Any]
Values = dict[str, Any]

REQUIRED: Any = object()
"""The default of a key that must be set."""

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""Their names of the activations; the first of ours is the one that is written."""


@dataclass(frozen=True)
class Row:
    """A part of the map.

    Attributes:
        keys: The keys of `config.json` that it reads.
        read: `config.json` -> settings of `ModelConfig`.
        write: The architecture -> keys of `config.json`.
        checks: The settings that it expresses (see `export_guard`).
    """

    keys: tuple[str, ...]
    read: Callable[[HfConfig], Values]
    write: Callable[[ModelConfig], Values]
    checks: Mapping[str, Check] = field(default_factory=dict)


def required(config: HfConfig, *keys: str) -> Any:
    """The value of the first of `keys` that is set (a key and its older names).

    Raises:
        CheckpointError: None is set.
    """
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise CheckpointError(f"config.json must have `{keys[0]}`, but does not.")


def setting(ours: str, *keys: str, default: Any = REQUIRED) -> Row:
    """One setting of ours under one key.

    Args:
        ours: Name of the setting. Several names, separated by spaces, are settings that must be equal.
        keys: The key's name, and older names of it.
        default: Value of a key that is not set or null, as in transformers.
    """
    names = ours.split()

    def read(hf: HfConfig) -> Values:
        if default is REQUIRED:
            value = required(hf, *keys)
        else:
            value = next((hf[key] for key in keys if hf.get(key) is not None), default)
        return dict.fromkeys(names, value)

    others = {name: _equal(name, names[0]) for name in names[1:]}
    return Row(keys, read, lambda config: {keys[0]: getattr(config, names[0])}, {**anything(names[0]), **others})


def _equal(name: str, other: str) -> Check:
    return where(lambda config: getattr(config, name) == getattr(config, other), f", unlike {other}")


def activation(key: str, default: str) -> Row:
    """The activation of the feed-forward layer."""

    def read(hf: HfConfig) -> Values:
        name = hf.get(key) or default
        if name not in ACTIVATIONS:
            raise UnsupportedError(f"The activation must be one of {', '.join(ACTIVATIONS)}, but is '{name}'.")
        return {"activation": ACTIVATIONS[name]}

    def write(config: ModelConfig) -> Values:
        names = [name for name, ours in ACTIVATIONS.items() if ours == config.activation]
        return {key: default if default in names else names[0]}

    return Row((key,), read, write, anything("activation"))


def always(**ours: Any) -> Row:
    """Settings of ours that are the same in all models of the family, which has no key for them."""
    return Row((), lambda hf: dict(ours), lambda config: {}, {name: only(value) for name, value in ours.items()})


def must_be(**theirs: Any) -> Row:
    """Keys that can only have one value, which is also the value of a key that is not set."""

    def read(hf: HfConfig) -> Values:
        for key, value in theirs.items():
            if hf.get(key) not in (None, value):
                raise UnsupportedError(f"{key} in config.json must be {_word(value)}, but is {_word(hf[key])}.")
        return {}

    return Row(tuple(theirs), read, lambda config: dict(theirs))


def heads(
    *,
    hidden: str = "hidden_size",
    count: str = "num_attention_heads",
    kv: str = "",
    head_dim: str = "",
    default: int = 0,
) -> Row:
    """Width of the model, number of heads, and where there are keys for them, key/value heads and width of a head.

    Args:
        hidden: Key of the width.
        count: Key of the number of heads.
        kv: Key of the number of key/value heads; null there = as many as heads.
        head_dim: Key of the width of a head.
        default: Width of a head in a `config.json` without `head_dim`; 0 = width / heads.
    """
    keys = tuple(key for key in (hidden, count, kv, head_dim) if key)

    def read(hf: HfConfig) -> Values:
        number, width = int(required(hf, count)), int(required(hf, hidden))
        kv_heads = int(hf.get(kv) or number)
        size = int(hf.get(head_dim) or default or width // number)
        return {
            "hidden_size": width,
            "heads": number,
            "kv_heads": None if kv_heads == number else kv_heads,
            "head_dim": None if size * number == width else size,
        }

    def write(config: ModelConfig) -> Values:
        values = (config.hidden_size, config.heads, config.num_kv_heads, config.size_per_head)
        return {key: value for key, value in zip((hidden, count, kv, head_dim), values, strict=True) if key}

    checks = anything("hidden_size", "heads", *["kv_heads"] * bool(kv), *["head_dim"] * bool(head_dim))
    return Row(keys, read, write, checks)


def rotary(*, theta: str = "rope_theta", fraction: str = "", default: float = 1.0) -> Row:
    """Rotary positions: `rope_parameters` (transformers 5), or the base and `rope_scaling` (older).

    Args:
        theta: Older key of the base.
        fraction: Older key of the rotated part of a head; "" = models of the family rotate all of it.
        default: Rotated part where no key says it.
    """

    def read(hf: HfConfig) -> Values:
        settings = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
        part = settings.get("partial_rotary_factor") or hf.get(fraction) or default
        rotary_dim = None
        if part != 1.0 and not fraction:
            raise UnsupportedError(f"partial_rotary_factor in config.json must be 1, but is {part}.")
        if part != 1.0:
            head_dim = hf.get("head_dim") or int(required(hf, "hidden_size")) // int(
                required(hf, "num_attention_heads")
            )
            rotary_dim = int(head_dim * part)
        base = float(settings.get("rope_theta") or hf.get(theta) or 10000.0)
        return {"position": "rotary", "rope": _rope(settings, base, rotary_dim)}

    def write(config: ModelConfig) -> Values:
        parameters = _rope_parameters(config.rope)
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        older = {theta: config.rope.theta, "rope_scaling": None if config.rope.scaling == "none" else scaling}
        if not fraction:
            return {"rope_parameters": parameters, **older}
        part = _fraction(config.rotary_size, config.size_per_head)
        return {"rope_parameters": {**parameters, "partial_rotary_factor": part}, **older, fraction: part}

    rope = [f"rope.{name}" for name in RopeConfig.model_fields if name != "rotary_dim" or fraction]
    keys = ("rope_parameters", "rope_scaling", theta, *([fraction] if fraction else []))
    return Row(keys, read, write, {**anything(*rope), "position": only("rotary")})


def _fraction(rotary_dim: int, head_dim: int) -> float:
    """A part of the head that transformers, which rounds down, turns into `rotary_dim` again."""
    part = rotary_dim / head_dim
    return part if int(head_dim * part) == rotary_dim else (rotary_dim + 0.5) / head_dim


def _rope(settings: Values, theta: float, rotary_dim: int | None) -> RopeConfig:
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return RopeConfig(theta=theta, rotary_dim=rotary_dim)
    names = {"factor": "factor"}
    if kind == "llama3":
        names |= {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}
        names |= {"original_max_position": "original_max_position_embeddings"}
    elif kind != "linear":
        raise UnsupportedError(f"Rotary scaling must be default, linear or llama3, but is '{kind}'.")
    scaling = {ours: required(settings, theirs) for ours, theirs in names.items()}
    return RopeConfig(theta=theta, rotary_dim=rotary_dim, scaling=kind, **scaling)


def _rope_parameters(rope: RopeConfig) -> Values:
    """`rope_parameters` of transformers 5."""
    values: Values = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.scaling != "none":
        values |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        values["low_freq_factor"] = rope.low_freq_factor
        values["high_freq_factor"] = rope.high_freq_factor
        values["original_max_position_embeddings"] = rope.original_max_position
    return values


def window(*, default: int | None = None) -> Row:
    """The sliding window of all layers; null = none. `default` is that of a key that is not there."""
    return Row(
        ("sliding_window",),
        lambda hf: {"sliding_window": hf.get("sliding_window", default)},
        lambda config: {"sliding_window": config.sliding_window},
        anything("sliding_window"),
    )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
