"""What an exporter can export: a whole model, of which it can express every setting.

Every exporter has an allow-list: a table from names of settings of `ModelConfig` (`rope.theta` for a nested one) to a
`Check` of their values. A setting that is not listed must have its default. So no setting is ever dropped silently: a
field that is added to `ModelConfig` is refused by every exporter until it is added to the exporter's table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.latent import LatentConfig
from onmt_llm.config.mixture import MoEConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import ROPE_SETTINGS, RopeConfig
from onmt_llm.config.section import Section
from onmt_llm.errors import CheckpointError

Check = Callable[[Any, ModelConfig], str | None]
"""Whether a value can be expressed in a model: None, or what to add to the sentence `NAME is VALUE` (may be empty)."""


def open_for_export(checkpoint: Checkpoint | str | Path) -> Checkpoint:
    """The checkpoint, which must hold a whole model without an adapter.

    Raises:
        CheckpointError: It holds an adapter or expansion.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    if checkpoint.has_adapter:
        raise CheckpointError(
            f"{checkpoint.path} holds a {checkpoint.config.noun} and cannot be exported.",
            hint="onmt_llm_lora -action merge makes it a whole model"
            + (", -action export a peft adapter" if checkpoint.config.expansion is None else ""),
        )
    return checkpoint


def anything(*names: str) -> dict[str, Check]:
    """These settings can be expressed with any value."""
    return dict.fromkeys(names, lambda value, config: None)


def only(*values: object) -> Check:
    """One of these values."""
    return lambda value, config: None if value in values else ""


def where(holds: Callable[[ModelConfig], bool], reason: str = "") -> Check:
    """Any value, in a model for which `holds` is true; `reason` completes the sentence otherwise."""
    return lambda value, config: None if holds(config) else reason


WITH_DECODER: Mapping[str, Check] = {"decoder_layers": where(lambda config: config.decoder_layers > 0)}
"""Any number of decoder layers but 0, which is an encoder alone."""


def without_experts(reason: str) -> dict[str, Check]:
    """Only ordinary feed-forward layers; `reason` completes the sentence about a mixture of experts."""
    others = [f"moe.{name}" for name in MoEConfig.model_fields if name != "experts"]
    return {"moe.experts": where(lambda config: not config.moe.experts, reason), **anything(*others)}


def obstacles(config: ModelConfig, expressible: Mapping[str, Check]) -> list[str]:
    """Settings of a model that an exporter cannot express, each as `NAME is VALUE` with a reason; empty = none.

    Settings without effect in this model are ignored.
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
    """The same model, with the default for every setting that has no effect or only repeats an implied value."""
    with_effect = {
        "layer_types": len(set(config.layer_types)) > 1,
        "rope_layers": not all(config.rope_layers),
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
        "qk_norm_over": config.qk_norm,
        "qk_norm_type": config.qk_norm,
        "head_dim": config.size_per_head * config.heads != config.hidden_size,
    }
    plain = ModelConfig()
    update = {name: getattr(plain, name) for name, effect in with_effect.items() if not effect}
    sections = {"rope": _canonical_rope(config), "moe": _canonical_moe(config), "latent": _canonical_latent(config)}
    return config.model_copy(update={**sections, **_canonical_factors(config), **update})


def _canonical_moe(config: ModelConfig) -> MoEConfig:
    moe, plain = config.moe if config.moe_layers else MoEConfig(), MoEConfig()
    with_effect = {
        "expert_size": config.expert_size != config.ffn_size,
        "shared_gate": moe.shared_size > 0,
        "groups_per_token": moe.groups > 1,
    }
    return moe.model_copy(update={name: getattr(plain, name) for name, effect in with_effect.items() if not effect})


def _canonical_latent(config: ModelConfig) -> LatentConfig:
    latent = config.latent if config.latent.kv_rank else LatentConfig()
    return latent.model_copy(update={"value_dim": None}) if config.value_size == config.size_per_head else latent


def _canonical_factors(config: ModelConfig) -> dict[str, Any]:
    """Factors that are also what a switch means, as that switch."""
    root = config.hidden_size**0.5
    factors = {
        "attention_scale": ("scale_attention", {True: config.size_per_head**-0.5, False: 1.0}),
        "embedding_scale": ("scale_embeddings", {True: root, False: 1.0}),
        "logit_scale": ("scale_logits", {True: 1 / root, False: 1.0}),
    }
    found: dict[str, Any] = {}
    for name, (switch, meanings) in factors.items():
        value = getattr(config, name)
        for on, meaning in meanings.items():
            if value is not None and math.isclose(value, meaning, rel_tol=1e-12):
                found |= {name: None, switch: on}
    return found


def _canonical_rope(config: ModelConfig) -> RopeConfig:
    rope = config.rope
    rotary_dim = None if config.rotary_size == config.size_per_head else rope.rotary_dim
    local_theta = None if config.sliding_window is None else rope.local_theta
    kept = {name: getattr(rope, name) for name in ("theta", "scaling", *ROPE_SETTINGS[rope.scaling])}
    return RopeConfig(
        **kept,
        rotary_dim=rotary_dim,
        local_theta=None if (local_theta, rope.scaling) == (rope.theta, "none") else local_theta,
    )


def _shown(value: object) -> str:
    """The value as in a YAML file."""
    return value if isinstance(value, str) else json.dumps(value, default=Section.model_dump)
