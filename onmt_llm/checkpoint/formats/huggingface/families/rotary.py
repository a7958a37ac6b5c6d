"""The rows of rotary positions and their scaling, in any family."""

from __future__ import annotations

import math
from typing import Any

from onmt_llm.checkpoint.export_guard import Check, anything, only, where
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig, Row, Values, required
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import ROPE_SETTINGS, RopeConfig
from onmt_llm.errors import UnsupportedError

ORIGINAL = "original_max_position_embeddings"
NAMES = {"original_max_position": ORIGINAL}
"""Their names of the settings of `RopeConfig` that have another name."""
KEYS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "mscale", "mscale_all_dim", "finetuned"),
    *(NAMES.get(name, name) for names in ROPE_SETTINGS.values() for name in names),
}
"""The keys of `rope_parameters`; like transformers, we ignore those that the scaling does not use."""


def rotary(
    *,
    theta: str = "rope_theta",
    fraction: str = "",
    default: float = 1.0,
    default_theta: float = 10000.0,
    original: int = 0,
) -> Row:
    """Rotary positions: `rope_parameters` (transformers 5), or the base and `rope_scaling` (older).

    Args:
        theta: Older key of the base.
        fraction: Older key of the rotated part of a head; "" = models of the family rotate all of it.
        default: Rotated part where no key says it.
        default_theta: Base where no key says it.
        original: Original context where no key says it, in a family whose only scaling is `longrope` (Phi-3).
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
        base = float(settings.get("rope_theta") or hf.get(theta) or default_theta)
        return {"position": "rotary", "rope": _rope(settings, base, rotary_dim, {ORIGINAL: original or None, **hf})}

    def write(config: ModelConfig) -> Values:
        parameters = _rope_parameters(config.rope)
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        older = {theta: config.rope.theta, "rope_scaling": None if config.rope.scaling == "none" else scaling}
        if original and ORIGINAL in scaling:
            older[ORIGINAL] = scaling[ORIGINAL]
        if not fraction:
            return {"rope_parameters": parameters, **older}
        part = _fraction(config.rotary_size, config.size_per_head)
        return {"rope_parameters": {**parameters, "partial_rotary_factor": part}, **older, fraction: part}

    checks = _checks("local_theta", *([] if fraction else ["rotary_dim"]))
    if original:
        checks["rope.scaling"] = only("none", "longrope")
    keys = ("rope_parameters", "rope_scaling", theta, ORIGINAL, *([fraction] if fraction else []))
    return Row(keys, read, write, checks)


def rotary_by_type(*, theta: float, local_theta: float) -> Row:
    """Rotary positions of all layers: `rope_parameters` by the type of the layer (transformers 5), or a base for each
    type, and `rope_scaling` of the layers without a sliding window (older).

    Args:
        theta: Base of the layers without a sliding window where no key says it.
        local_theta: The same of those with one.
    """
    keys = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")

    def read(hf: HfConfig) -> Values:
        by_type = hf.get("rope_parameters") or {}
        settings = {**(hf.get("rope_scaling") or {}), **(by_type.get("full_attention") or {})}
        rope = _rope(settings, float(settings.get("rope_theta") or hf.get("rope_theta") or theta), None, hf)
        settings = by_type.get("sliding_attention") or {}
        base = float(settings.get("rope_theta") or hf.get("rope_local_base_freq") or local_theta)
        local = _rope(settings, base, None, hf)
        if local.scaling != "none" and local != rope:
            raise UnsupportedError(
                f"Rotary scaling of the layers of type sliding_attention must be default or that of the others, but is "
                f"'{local.scaling}'."
            )
        return {
            "position": "rotary",
            "rope": rope if local == rope else rope.model_copy(update={"local_theta": local.theta}),
        }

    def write(config: ModelConfig) -> Values:
        rope, local = _rope_parameters(config.rope), _rope_parameters(config.rope.local)
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        values = (
            {"full_attention": rope, "sliding_attention": local},
            None if config.rope.scaling == "none" else scaling,
            *(config.rope.theta, config.rope.local.theta),
        )
        return dict(zip(keys, values, strict=True))

    return Row(keys, read, write, _checks("rotary_dim"))


def _checks(*unknown: str) -> dict[str, Check]:
    """The settings that `rope_parameters` express: all but `unknown`."""
    return {
        **anything(*(f"rope.{name}" for name in RopeConfig.model_fields if name not in unknown)),
        "position": only("rotary"),
        # The original context of `dynamic` has no key of its own.
        "rope.original_max_position": where(
            lambda config: config.rope.scaling != "dynamic" or config.rope.original_max_position == config.max_position,
            ", unlike max_position",
        ),
    }


def _fraction(rotary_dim: int, head_dim: int) -> float:
    """A part of the head that transformers, which rounds down, turns into `rotary_dim` again."""
    part = rotary_dim / head_dim
    return part if int(head_dim * part) == rotary_dim else (rotary_dim + 0.5) / head_dim


def _rope(settings: Values, theta: float, rotary_dim: int | None, hf: HfConfig) -> RopeConfig:
    """The scaling in `settings`, with the defaults of transformers; `hf` has the longest context."""
    unknown = sorted(settings.keys() - KEYS)
    if unknown:
        raise UnsupportedError(
            f"The keys of rope_parameters in config.json must be among {', '.join(sorted(KEYS))}, but there is also "
            f"{', '.join(unknown)}."
        )
    kind: Any = settings.get("rope_type") or settings.get("type") or "default"
    if "long_factor" in settings:  # older files of Phi-3 call it `su` or `yarn`
        kind = "longrope"
    kind = "none" if kind == "default" else kind
    if kind not in ROPE_SETTINGS:
        known = ", ".join(name.replace("none", "default") for name in ROPE_SETTINGS)
        raise UnsupportedError(f"Rotary scaling must be one of {known}, but is '{kind}'.")
    values = {name: _scaling_value(name, kind, hf, settings) for name in ROPE_SETTINGS[kind]}
    scaling = {name: value for name, value in values.items() if value is not None}
    return RopeConfig(theta=theta, rotary_dim=rotary_dim, scaling=kind, **scaling)


def _scaling_value(name: str, kind: str, hf: HfConfig, settings: Values) -> Any:
    """The value of a setting of `RopeConfig`; None = the default of ours, which is that of transformers."""
    if name == "original_max_position":
        longest = required(hf, "max_position_embeddings")
        return longest if kind == "dynamic" else hf.get(ORIGINAL) or settings.get(ORIGINAL) or longest
    if name == "factor" and kind in ("yarn", "longrope") and settings.get("factor") is None:
        return required(hf, "max_position_embeddings") / _scaling_value("original_max_position", kind, hf, settings)
    if name == "attention_factor" and settings.get("attention_factor") is None:
        return _deepseek_factor(_scaling_value("factor", kind, hf, settings), settings)
    if name in ("beta_fast", "beta_slow", "truncate", "attention_factor"):
        return settings.get(name)
    return required(settings, name)


def _deepseek_factor(factor: float, settings: Values) -> float | None:
    """DeepSeek's form of the attention factor: a quotient of two; None = it is not used."""
    above, below = settings.get("mscale"), settings.get("mscale_all_dim")
    if not above or not below:
        return None
    growth = 0.1 * math.log(max(factor, 1.0))
    return (above * growth + 1.0) / (below * growth + 1.0)


def _rope_parameters(rope: RopeConfig) -> Values:
    """`rope_parameters` of transformers 5."""
    names = [
        name for name in ROPE_SETTINGS[rope.scaling] if (rope.scaling, name) != ("dynamic", "original_max_position")
    ]
    values = {NAMES.get(name, name): getattr(rope, name) for name in names}
    return {
        "rope_theta": rope.theta,
        "rope_type": "default" if rope.scaling == "none" else rope.scaling,
        **{key: value for key, value in values.items() if value is not None},
    }
