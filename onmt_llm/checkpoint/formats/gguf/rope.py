"""Rotary positions in GGUF files: the base, the rotated part of a head, and the scaling.

Keys are without the architecture's prefix. (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from onmt_llm.checkpoint.export_guard import anything, only, where
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig, Row, Values, required
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.positions import rotary_frequencies

ROPE_FREQS = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (ROPE_FREQS, _SHORT, _LONG)
"""Tensors with divisors of the rotary frequencies; given to the rows among the keys."""
_ORIGINAL, _MAGNITUDE = "rope.scaling.original_context_length", "rope.scaling.attn_factor"

KEYS = (
    *("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", *ROPE_TENSORS),
    *(_ORIGINAL, _MAGNITUDE, "rope.scaling.yarn_attn_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)


def _read(found: HfConfig) -> Values:
    head_dim = found.get("attention.key_length") or found["embedding_length"] // found["attention.head_count"]
    rotary_dim = int(found.get("rope.dimension_count", head_dim))
    theta = found.get("rope.freq_base", 10000.0)
    plain = RopeConfig(theta=theta, rotary_dim=None if rotary_dim == head_dim else rotary_dim)
    kind = found.get("rope.scaling.type", "none")
    if ROPE_FREQS in found:
        rope = _llama3(found[ROPE_FREQS].float(), plain, rotary_dim)
    elif _LONG in found:
        rope = plain.model_copy(update={"scaling": "longrope", **_longrope(found)})
    elif found.get(_MAGNITUDE, 1.0) != 1.0:
        raise UnsupportedError(f"{_MAGNITUDE} needs {_LONG}, but is {found[_MAGNITUDE]} without it.")
    elif kind in _SCALINGS:
        rope = plain.model_copy(update={"scaling": kind, **_SCALINGS[kind](found)})
    else:
        raise UnsupportedError(f"Rotary scaling must be {', '.join(_SCALINGS)}, llama3 or longrope, but is '{kind}'.")
    return {"position": "rotary", "rope": rope}


def _linear(found: HfConfig) -> Values:
    return {"factor": required(found, "rope.scaling.factor")}


def _yarn(found: HfConfig) -> Values:
    """Settings without a key have the defaults of ours, which are llama.cpp's."""
    names = {
        "rope.scaling.yarn_attn_factor": "attention_factor",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    return {
        **_linear(found),
        "original_max_position": int(required(found, _ORIGINAL, "context_length")),
        **{ours: found[key] for key, ours in names.items() if key in found},
    }


def _longrope(found: HfConfig) -> Values:
    """Divisors for short and for long texts. A magnitude that the two context lengths imply is left to be computed."""
    original, longest = int(required(found, _ORIGINAL)), int(required(found, "context_length"))
    rope = RopeConfig(scaling="longrope", factor=longest / original, original_max_position=original)
    magnitude = found.get(_MAGNITUDE, 1.0)
    return {
        "factor": rope.factor,
        "original_max_position": original,
        "short_factor": _numbers(required(found, _SHORT)),
        "long_factor": _numbers(found[_LONG]),
        "attention_factor": None if math.isclose(magnitude, rope.magnitude, rel_tol=1e-6) else magnitude,
    }


def _numbers(tensor: torch.Tensor) -> list[float]:
    return [float(f"{number:.7g}") for number in tensor.tolist()]


_SCALINGS: Mapping[str, Callable[[HfConfig], Values]] = {"none": lambda found: {}, "linear": _linear, "yarn": _yarn}


def _llama3(divisors: torch.Tensor, plain: RopeConfig, rotary_dim: int) -> RopeConfig:
    """LLaMA 3.1's scaling: GGUF stores only the divisor of each frequency; the rest are published constants.

    Raises:
        UnsupportedError: The divisors do not follow LLaMA 3.1's formula.
    """
    rope = plain.model_copy(update={"scaling": "llama3", "factor": float(f"{divisors.max():.7g}")})
    expected = _divisors(plain, rope, rotary_dim)
    if divisors.shape != expected.shape or not torch.allclose(expected, divisors, rtol=1e-4):
        raise UnsupportedError(
            "The GGUF file scales rotary frequencies in another way than LLaMA 3.1 (rope_freqs.weight)."
        )
    return rope


def _divisors(plain: RopeConfig, scaled: RopeConfig, rotary_dim: int) -> torch.Tensor:
    """By what scaling divides each frequency: (rotary_dim / 2,)."""
    cpu = torch.device("cpu")
    return rotary_frequencies(plain, rotary_dim, cpu) / rotary_frequencies(scaled, rotary_dim, cpu)


def _write(config: ModelConfig) -> Values:
    rope = config.rope
    values: Values = {"rope.freq_base": rope.theta, "rope.dimension_count": config.rotary_size}
    if rope.scaling in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope.scaling, "rope.scaling.factor": rope.factor}
    if rope.scaling == "yarn":
        values |= {
            _ORIGINAL: rope.original_max_position,
            "rope.scaling.yarn_beta_fast": rope.beta_fast,
            "rope.scaling.yarn_beta_slow": rope.beta_slow,
        }
    if rope.scaling == "llama3":
        values[ROPE_FREQS] = _divisors(
            RopeConfig(theta=rope.theta, rotary_dim=rope.rotary_dim), rope, config.rotary_size
        )
    if rope.scaling == "longrope":
        values |= {
            _ORIGINAL: rope.original_max_position,
            _MAGNITUDE: rope.magnitude,
            _SHORT: torch.tensor(rope.short_factor),
            _LONG: torch.tensor(rope.long_factor),
        }
    if rope.scaling == "yarn" and rope.attention_factor is not None:
        values["rope.scaling.yarn_attn_factor"] = rope.attention_factor
    return values


def _plain_magnitude(rope: RopeConfig) -> float:
    """`magnitude` of a model that does not set it: llama.cpp computes it, and leaves the key unread."""
    return rope.model_copy(update={"attention_factor": None}).magnitude


_EXPRESSED = ("theta", "rotary_dim", "factor", "beta_fast", "beta_slow")
_CHECKS = {
    **anything(*(f"rope.{name}" for name in _EXPRESSED)),
    "position": only("rotary"),
    "rope.scaling": only("none", "linear", "yarn", "llama3"),
    "rope.original_max_position": where(
        lambda config: config.rope.scaling != "llama3" or config.rope.original_max_position == 8192,
        ", but must be that of LLaMA 3.1, 8192",
    ),
    "rope.attention_factor": where(
        lambda config: math.isclose(config.rope.magnitude, _plain_magnitude(config.rope), rel_tol=1e-6),
        ", for which llama.cpp has another value than the file",
    ),
}
ROTARY = Row(KEYS, _read, _write, _CHECKS)
"""The rotary positions of all layers."""


def _implied(config: ModelConfig) -> bool:
    """The factor of `longrope`, which has no key, is the quotient of the two context lengths."""
    rope = config.rope
    return rope.scaling != "longrope" or rope.factor * rope.original_max_position == config.max_position


ROTARY_OR_LONG = Row(
    KEYS,
    _read,
    _write,
    {
        **_CHECKS,
        "rope.scaling": only("none", "linear", "yarn", "llama3", "longrope"),
        **anything("rope.short_factor", "rope.long_factor"),
        "rope.factor": where(_implied, ", but must be max_position / rope.original_max_position"),
    },
)
"""The same where llama.cpp also computes `longrope` (Phi-3)."""


def rotary_not_truncated() -> Row:
    """`yarn` is that of gpt-oss, which does not round the range of its frequencies; llama.cpp has no key for that."""

    def read(found: HfConfig) -> Values:
        values = _read(found)
        yarn = values["rope"].scaling == "yarn"
        return {**values, "rope": values["rope"].model_copy(update={"truncate": not yarn})}

    truncate = where(lambda config: config.rope.truncate == (config.rope.scaling != "yarn"))
    return Row(KEYS, read, _write, {**_CHECKS, "rope.truncate": truncate})


def rotary_with_windows(*, local_theta: float) -> Row:
    """Layers with a sliding window have a base of their own, and no scaling.

    Args:
        local_theta: That base where no key says it.
    """
    key = "rope.freq_base_swa"

    def read(found: HfConfig) -> Values:
        values = _read(found)
        rope, local = values["rope"], found.get(key, local_theta)
        same = local == rope.theta and rope.scaling == "none"
        return {**values, "rope": rope if same else rope.model_copy(update={"local_theta": local})}

    def write(config: ModelConfig) -> Values:
        return {**_write(config), key: config.rope.local.theta}

    return Row((*KEYS, key), read, write, {**_CHECKS, **anything("rope.local_theta")})
