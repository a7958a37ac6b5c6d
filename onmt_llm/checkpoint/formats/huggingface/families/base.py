"""`Family`: how one Hugging Face architecture maps to `ModelConfig` and to our tensors, both ways.

A configuration map is a list of `Row`s, which are read forwards on import and backwards on export; what no row can
write is what the family cannot express.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

from onmt_llm.checkpoint.export_guard import Check, anything, only, where
from onmt_llm.checkpoint.formats.huggingface.families.keys import check_keys, file_name
from onmt_llm.checkpoint.formats.ops import Op
from onmt_llm.checkpoint.formats.rules import Rule, rule
from onmt_llm.config.model import Activation, ModelConfig, Task
from onmt_llm.errors import CheckpointError, UnsupportedError

HfConfig = Mapping[str, Any]
Values = dict[str, Any]

REQUIRED: Any = object()
"""The default of a key that must be set."""

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu2",
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
    raise CheckpointError(f"{file_name(config)} must have `{keys[0]}`, but does not.")


def setting(ours: str, *keys: str, default: Any = REQUIRED) -> Row:
    """One setting of ours under one key.

    Args:
        ours: Name of the setting, `moe.experts` for a nested one. Several names, separated by spaces, are settings that
            must be equal.
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
    value = attrgetter(names[0])
    return Row(keys, read, lambda config: {keys[0]: value(config)}, {**anything(names[0]), **others})


def _equal(name: str, other: str) -> Check:
    return where(lambda config: getattr(config, name) == getattr(config, other), f", unlike {other}")


def both(ours: str, *keys: str) -> Row:
    """One setting of ours under several keys, which must be equal: that of the encoder and that of the decoder."""

    def read(hf: HfConfig) -> Values:
        first, *others = ((key, required(hf, key)) for key in keys)
        for key, value in others:
            if value != first[1]:
                raise UnsupportedError(f"{key} in config.json must be {first[1]} as {first[0]}, but is {value}.")
        return {ours: first[1]}

    return Row(keys, read, lambda config: dict.fromkeys(keys, getattr(config, ours)), anything(ours))


_SWITCHES = {"attention_scale": "scale_attention", "embedding_scale": "scale_embeddings", "logit_scale": "scale_logits"}
"""The setting of ours that each factor replaces."""


def scale(ours: str, key: str, *, default: float = 1.0, inverse: bool = False) -> Row:
    """A factor of attention scores, embeddings or logits, which is written whatever setting of ours it comes from.

    Args:
        ours: `attention_scale`, `embedding_scale` or `logit_scale`.
        key: The key's name.
        default: Value of a key that is not set or null.
        inverse: Their value is a divisor.
    """

    def read(hf: HfConfig) -> Values:
        value = hf.get(key)
        value = default if value is None else value
        return {ours: _reciprocal(value) if inverse and value and isinstance(value, int | float) else value}

    def write(config: ModelConfig) -> Values:
        value = getattr(config, ours.replace("_scale", "_factor"))
        return {key: _reciprocal(value) if inverse else value}

    return Row((key,), read, write, anything(ours, _SWITCHES[ours]))


def _reciprocal(value: float) -> float:
    """1 / value, in so few digits that the reciprocal of that is `value` again."""
    return float(f"{1 / value:.15g}")


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

    return Row((key,), read, write, {"activation": only(*ACTIVATIONS.values())})


def always(**ours: Any) -> Row:
    """Settings of ours that are the same in all models of the family, which has no key for them."""
    return Row((), lambda hf: dict(ours), lambda config: {}, {name: only(value) for name, value in ours.items()})


def must_be(**theirs: Any) -> Row:
    """Keys that can only have one value, which is also the value of a key that is not set."""

    def read(hf: HfConfig) -> Values:
        for key, value in theirs.items():
            if hf.get(key) not in (None, value):
                raise UnsupportedError(f"{key} in {file_name(hf)} must be {_word(value)}, but is {_word(hf[key])}.")
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
        hidden: Key of the width, and older names of it, separated by spaces.
        count: Key of the number of heads, likewise.
        kv: Key of the number of key/value heads; null there = as many as heads.
        head_dim: Key of the width of a head.
        default: Width of a head in a `config.json` without `head_dim`; 0 = width / heads.
    """
    widths, counts = hidden.split(), count.split()
    keys = tuple(key for key in (*widths, *counts, kv, head_dim) if key)

    def read(hf: HfConfig) -> Values:
        number, width = int(required(hf, *counts)), int(required(hf, *widths))
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
        return {key: value for key, value in zip((widths[0], counts[0], kv, head_dim), values, strict=True) if key}

    checks = anything("hidden_size", "heads", *["kv_heads"] * bool(kv), *["head_dim"] * bool(head_dim))
    return Row(keys, read, write, checks)


def _word(value: object) -> str:
    """The value as in JSON, but with the quotes of Python."""
    return repr(value) if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture.

    Attributes:
        model_type: As in `config.json`.
        architecture: The class of transformers.
        rows: The map between `config.json` and `ModelConfig`; where two set the same, the later one counts.
        rules: The weight-name rules, with `{i}` filled in.
        ignore: Patterns of tensors to skip.
        models: Well-known models of the family.
        harmless: Patterns of keys that change nothing, beyond `HARMLESS`.
        older: Older beginnings of tensor names and the current ones.
        embedding: Names of the one embedding of a model with `share_embeddings`, the usual one first. A file holds it
            under any of them; under several, the others are copies.
        optional: Settings of ours that are false if a file lacks the tensor of that name.
        others: Rules for tensors that some files have instead: where these are all there, they replace those of `rules`
            for the same tensors of ours.
    """

    model_type: str
    architecture: str
    rows: Sequence[Row]
    rules: Callable[[ModelConfig], list[Rule]]
    ignore: tuple[str, ...] = ()
    models: str = ""
    harmless: tuple[str, ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    embedding: tuple[str, ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)
    others: Callable[[ModelConfig], list[Rule]] = lambda config: []

    @property
    def origin(self) -> str:
        """What converted models of this family name as their source, before their own name."""
        return f"Hugging Face {self.model_type}"

    @property
    def task(self) -> Task:
        """What its models are for."""
        return "seq2seq" if "encoder_layers" in self.expressible else "lm"

    @property
    def keys(self) -> list[str]:
        """The keys of `config.json` that the map reads."""
        return [key for row in self.rows for key in row.keys]

    @cached_property
    def expressible(self) -> Mapping[str, Check]:
        """The settings of `ModelConfig` that the family can express (see `export_guard`)."""
        return {**anything("dtype"), **{name: check for row in self.rows for name, check in row.checks.items()}}

    def to_model(self, hf: HfConfig, *, ignore_unknown: bool = False) -> ModelConfig:
        """`config.json` -> our architecture.

        Raises:
            CheckpointError: A key is missing.
            UnsupportedError: A value means something that the map does not know; or a key, without `ignore_unknown`.
        """
        check_keys(hf, [*self.keys, *self.harmless], self.model_type, ignore_unknown=ignore_unknown)
        values = {name: value for row in self.rows for name, value in row.read(hf).items()}
        return ModelConfig.model_validate(nested(values))

    def to_hf(self, config: ModelConfig) -> Values:
        """Our architecture -> `config.json`, without token ids and dtype."""
        written = {key: value for row in self.rows for key, value in row.write(config).items()}
        return {"architectures": [self.architecture], "model_type": self.model_type, **written}


def nested(values: Values) -> Values:
    """Settings of sections, named `section.name`, as one value for each section."""
    nested: Values = {}
    for name, value in values.items():
        section, _, inner = name.rpartition(".")
        if section:
            nested.setdefault(section, {})[inner] = value
        else:
            nested[name] = value
    return nested


def modules(names: Mapping[str, str], op: Op | None = None) -> list[Rule]:
    """Rules for the weight and the bias of modules, from our name of each to theirs."""
    return [
        rule(f"{ours}.{kind}", f"{theirs}.{kind}", op) for ours, theirs in names.items() for kind in ("weight", "bias")
    ]


def block(theirs: str, names: Mapping[str, str], op: Op | None = None, *, stack: str = "decoder") -> list[Rule]:
    """`modules` of each block of a stack; `theirs` is the path of their blocks."""
    return modules({f"{stack}.layers.{{i}}.{name}": f"{theirs}.{{i}}.{other}" for name, other in names.items()}, op)


def fused(theirs: str, name: str, ours: Sequence[str], op: Op) -> list[Rule]:
    """Rules for several of our modules in each decoder block, which are one of theirs."""
    return [
        rule([f"decoder.layers.{{i}}.{one}.{kind}" for one in ours], f"{theirs}.{{i}}.{name}.{kind}", op)
        for kind in ("weight", "bias")
    ]


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
