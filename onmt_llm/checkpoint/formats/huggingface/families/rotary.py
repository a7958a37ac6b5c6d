"""The rows of rotary positions and their scaling, in any family."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything, only
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig, Row, Values, required
from onmt_llm.config.model import ModelConfig, RopeConfig
from onmt_llm.errors import UnsupportedError


def rotary(
    *, theta: str = "rope_theta", fraction: str = "", default: float = 1.0, default_theta: float = 10000.0
) -> Row:
    """Rotary positions: `rope_parameters` (transformers 5), or the base and `rope_scaling` (older).

    Args:
        theta: Older key of the base.
        default_theta: Base where no key says it.
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
        base = float(settings.get("rope_theta") or hf.get(theta) or default_theta)
        return {"position": "rotary", "rope": _rope(settings, base, rotary_dim)}

    def write(config: ModelConfig) -> Values:
        parameters = _rope_parameters(config.rope)
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        older = {theta: config.rope.theta, "rope_scaling": None if config.rope.scaling == "none" else scaling}
        if not fraction:
            return {"rope_parameters": parameters, **older}
        part = _fraction(config.rotary_size, config.size_per_head)
        return {"rope_parameters": {**parameters, "partial_rotary_factor": part}, **older, fraction: part}

    unknown = {"local_theta", *(() if fraction else ("rotary_dim",))}
    rope = [f"rope.{name}" for name in RopeConfig.model_fields if name not in unknown]
    keys = ("rope_parameters", "rope_scaling", theta, *([fraction] if fraction else []))
    return Row(keys, read, write, {**anything(*rope), "position": only("rotary")})


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
        rope = _rope(settings, float(settings.get("rope_theta") or hf.get("rope_theta") or theta), None)
        settings = by_type.get("sliding_attention") or {}
        base = float(settings.get("rope_theta") or hf.get("rope_local_base_freq") or local_theta)
        local = _rope(settings, base, None)
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

    rope = [f"rope.{name}" for name in RopeConfig.model_fields if name != "rotary_dim"]
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
