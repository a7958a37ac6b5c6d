"""What an exporter can express of a `ModelConfig`: an allow-list, so that no setting is ever dropped in silence.

Every exporter has a table from a setting's name (`rope.theta` for a nested one) to a `Check` of its values. A setting
that the table does not list must be at its default. So a field that is added to `ModelConfig` is refused by every
exporter until somebody decides what it becomes there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from onmt_llm.config.model import ModelConfig, RopeConfig
from onmt_llm.config.section import Section

Check = Callable[[Any, ModelConfig], str | None]
"""Whether a value can be expressed in a model: None, or what to add to the sentence `NAME is VALUE` (may be empty)."""


def anything(*names: str) -> dict[str, Check]:
    """These settings are expressed whatever their value is."""
    return dict.fromkeys(names, lambda value, config: None)


def only(*values: object) -> Check:
    """One of these values."""
    return lambda value, config: None if value in values else ""


def where(holds: Callable[[ModelConfig], bool], reason: str = "") -> Check:
    """Any value, in a model for which `holds` is true; `reason` is said of the others."""
    return lambda value, config: None if holds(config) else reason


def obstacles(config: ModelConfig, expressible: Mapping[str, Check]) -> list[str]:
    """Every setting of a model that an exporter cannot express, as `NAME is VALUE` with the reason; empty = none.

    Settings that have no effect in this model don't count.
    """
    config = canonical(config)
    defaults = settings(ModelConfig())
    found = []
    for name, value in settings(config).items():
        check = expressible.get(name, only(defaults[name]))
        reason = check(value, config)
        if reason is not None:
            found.append(f"{name} is {_shown(value)}{reason}")
    return found


def settings(config: ModelConfig) -> dict[str, Any]:
    """All settings by name, those of nested sections as `section.name`."""
    found: dict[str, Any] = {}
    for name in ModelConfig.model_fields:
        value = getattr(config, name)
        if isinstance(value, Section):
            found |= {f"{name}.{inner}": getattr(value, inner) for inner in type(value).model_fields}
        else:
            found[name] = value
    return found


def canonical(config: ModelConfig) -> ModelConfig:
    """The same model with settings that have no effect at their defaults, and nothing written out that is implied."""
    with_effect = {
        "rope": config.position == "rotary",
        "sinusoid": config.position == "sinusoidal",
        "relative_positions": config.position == "shaw",
        "relative_buckets": config.position == "t5",
        "relative_max_distance": config.position == "t5",
        "relative_shared": config.position == "t5",
        "alibi_scaled": config.position == "alibi",
        "norm_bias": config.norm == "layernorm",
        "feat_merge": bool(config.src_features),
        "share_embeddings": config.encoder_layers > 0,
        "src_vocab_size": config.encoder_layers > 0 and config.src_vocab_size != config.vocab_size,
        "kv_heads": config.kv_heads != config.heads,
        "head_dim": config.size_per_head * config.heads != config.hidden_size,
    }
    plain = ModelConfig()
    update = {name: getattr(plain, name) for name, effect in with_effect.items() if not effect}
    return config.model_copy(update={"rope": _canonical_rope(config), **update})


def _canonical_rope(config: ModelConfig) -> RopeConfig:
    rope = config.rope
    names = {"none": ("theta",), "linear": ("theta", "factor"), "llama3": tuple(RopeConfig.model_fields)}[rope.scaling]
    rotary_dim = None if config.rotary_size == config.size_per_head else rope.rotary_dim
    return RopeConfig(
        **{name: getattr(rope, name) for name in names if name not in ("rotary_dim", "scaling")},
        rotary_dim=rotary_dim,
        scaling=rope.scaling,
    )


def _shown(value: object) -> str:
    """As in a YAML file."""
    return value if isinstance(value, str) else json.dumps(value, default=Section.model_dump)
