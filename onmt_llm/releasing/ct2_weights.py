"""Weights of a CTranslate2 release: read, fused, quantised and written one variable at a time.

A variable of the spec is a promise that is kept when its turn comes, so that the memory needed is that of the largest
layer, not of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from ctranslate2.specs import common_spec, model_spec

from onmt_llm.checkpoint.store import Checkpoint

StorageKind = Literal["matrix", "vector"]

INT8 = ("int8", "int8_float32", "int8_float16", "int8_bfloat16")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1}


@dataclass(frozen=True)
class SpecVariable:
    """One variable of the spec.

    Attributes:
        target: Path in the spec.
        sources: Our tensors, whose rows are put one below the other; none = made by `make`.
        kind: "matrix" is quantised with the weights, "vector" is not.
        make: The value of a variable that has no tensor.
    """

    target: str
    sources: tuple[str, ...] = ()
    kind: StorageKind = "vector"
    make: functools.partial[np.ndarray] | None = None


class QuantizedTensors:
    """Reads tensors as float32, fuses them, and lets CTranslate2 quantise them; keeps the last result only."""

    def __init__(self, checkpoint: Checkpoint, quantization: str) -> None:
        self._checkpoint = checkpoint
        self.quantization = quantization
        self._last: tuple[SpecVariable, Any] | None = None

    def shape(self, rule: SpecVariable) -> tuple[int, ...]:
        if rule.make is not None:
            return rule.make().shape
        shapes = [self._checkpoint.shape(name) for name in rule.sources]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def stored(self, rule: SpecVariable) -> Any:
        """A `LinearSpec` (weight and, with integers, weight_scale) or a `LayerNormSpec` (gamma) in its final type.

        The library's own quantisation of a layer spec is used, so that the numbers are those that it expects. It works
        in place: the array that it is given is always one of our own, never the checkpoint's.
        """
        if self._last is None or self._last[0].sources != rule.sources or rule.make is not None:
            array = np.array(rule.make()) if rule.make is not None else self._read(rule)
            holder = common_spec.LinearSpec() if rule.kind == "matrix" else common_spec.LayerNormSpec(rms_norm=True)
            setattr(holder, "weight" if rule.kind == "matrix" else "gamma", array)
            holder.validate()
            holder.optimize(self.quantization)
            self._last = (rule, holder)
        return self._last[1]

    def _read(self, rule: SpecVariable) -> np.ndarray:
        parts = [self._checkpoint.tensor(name).float() for name in rule.sources]
        return (torch.cat(parts) if len(parts) > 1 else parts[0].clone()).contiguous().numpy()


class StreamedVariable(model_spec.Variable):
    """A variable whose content is made when the file is written.

    Args:
        identity: Two variables with equal identities hold the same numbers, and are written once.
        shape: Its shape.
        dtype: CTranslate2's name of its type.
        make: Gives the variable with its content.
    """

    def __init__(self, identity: object, shape: tuple[int, ...], dtype: str, make: Callable[[], Any]) -> None:
        self._identity = identity
        self._shape = shape
        self._dtype = dtype
        self._make = make

    @property
    def shape(self) -> list[int]:
        return list(self._shape)

    @property
    def dtype(self) -> str:
        return self._dtype

    def numpy(self) -> np.ndarray:
        return self._make().numpy()

    def num_bytes(self) -> int:
        return math.prod(self._shape) * BYTES[self._dtype]

    def to_bytes(self) -> bytes:
        variable = self._make()
        assert variable.dtype == self._dtype and tuple(variable.shape) == self._shape
        return variable.to_bytes()

    def _to(self, dtype: str) -> model_spec.Variable:
        raise AssertionError("the content is converted before it becomes a variable")

    def _equal(self, other: Any) -> bool:
        return self._identity == other._identity


def fill(spec: Any, rule: SpecVariable, source: QuantizedTensors) -> None:
    """Put promises for a rule's content into the spec."""
    scope, attribute = rule.target.rsplit("/", 1)
    layer = model_spec.index_spec(spec, scope)
    shape, dtype = source.shape(rule), stored_type(source.quantization, rule.kind)
    content = "weight" if rule.kind == "matrix" else "gamma"
    setattr(layer, attribute, _promise(source, rule, content, shape, dtype))
    if dtype == "int8":
        setattr(layer, f"{attribute}_scale", _promise(source, rule, "weight_scale", shape[:1], "float32"))
    elif dtype == "int16":
        setattr(layer, f"{attribute}_scale", _promise(source, rule, "weight_scale", (), "float32"))


def _promise(
    source: QuantizedTensors, rule: SpecVariable, attribute: str, shape: tuple[int, ...], dtype: str
) -> StreamedVariable:
    made = (rule.make.func, rule.make.args, rule.make.keywords) if rule.make is not None else None
    identity = (attribute, rule.sources, made)
    return StreamedVariable(identity, shape, dtype, lambda: getattr(source.stored(rule), attribute))


def stored_type(quantization: str, kind: StorageKind) -> str:
    """Type in which CTranslate2 stores matrices and vectors for a quantisation."""
    if kind == "matrix":
        return "int8" if quantization in INT8 else quantization
    half = quantization.removeprefix("int8_")
    return half if half in ("float16", "bfloat16") else "float32"
