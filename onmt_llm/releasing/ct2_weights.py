"""Weights of a CTranslate2 release: read, fused, quantised and written one variable at a time.

A variable of the spec is computed only when it is written, so the memory needed is that of the largest layer, not of
the model.
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
    """One variable of a CTranslate2 spec.

    Attributes:
        target: Path in the spec.
        sources: Our tensors, concatenated along rows; none = `make` computes it.
        kind: A "matrix" is quantised, a "vector" is not.
        make: Computes a variable that has no tensor.
    """

    target: str
    sources: tuple[str, ...] = ()
    kind: StorageKind = "vector"
    make: functools.partial[np.ndarray] | None = None


class QuantizedTensors:
    """Reads tensors as float32, fuses them, and has CTranslate2 quantise them. Caches only the last result."""

    def __init__(self, checkpoint: Checkpoint, quantization: str) -> None:
        self._checkpoint = checkpoint
        self.quantization = quantization
        self._last: tuple[SpecVariable, Any] | None = None

    def shape(self, variable: SpecVariable) -> tuple[int, ...]:
        if variable.make is not None:
            return variable.make().shape
        shapes = [self._checkpoint.shape(name) for name in variable.sources]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def stored(self, variable: SpecVariable) -> Any:
        """A `LinearSpec` (weight and, with integers, weight_scale) or a `LayerNormSpec` (gamma) in its final type.

        The library's own quantisation is used, so that the values are what it expects. It works in place, so it gets a
        copy of the checkpoint's data.
        """
        if self._last is None or self._last[0].sources != variable.sources or variable.make is not None:
            array = np.array(variable.make()) if variable.make is not None else self._read(variable)
            holder = common_spec.LinearSpec() if variable.kind == "matrix" else common_spec.LayerNormSpec(rms_norm=True)
            setattr(holder, "weight" if variable.kind == "matrix" else "gamma", array)
            holder.validate()
            holder.optimize(self.quantization)
            self._last = (variable, holder)
        return self._last[1]

    def _read(self, variable: SpecVariable) -> np.ndarray:
        parts = [self._checkpoint.tensor(name).float() for name in variable.sources]
        return (torch.cat(parts) if len(parts) > 1 else parts[0].clone()).contiguous().numpy()


class StreamedVariable(model_spec.Variable):
    """A variable whose content is computed when the file is written.

    Args:
        identity: Variables with equal identities have the same content and are written once.
        shape: Its shape.
        dtype: CTranslate2's name of its type.
        make: Computes the variable with its content.
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


def fill(spec: Any, variable: SpecVariable, source: QuantizedTensors) -> None:
    """Set a variable of the spec, to be computed when it is written."""
    scope, attribute = variable.target.rsplit("/", 1)
    layer = model_spec.index_spec(spec, scope)
    shape, dtype = source.shape(variable), stored_type(source.quantization, variable.kind)
    content = "weight" if variable.kind == "matrix" else "gamma"
    setattr(layer, attribute, _streamed(source, variable, content, shape, dtype))
    if dtype == "int8":
        setattr(layer, f"{attribute}_scale", _streamed(source, variable, "weight_scale", shape[:1], "float32"))
    elif dtype == "int16":
        setattr(layer, f"{attribute}_scale", _streamed(source, variable, "weight_scale", (), "float32"))


def _streamed(
    source: QuantizedTensors, variable: SpecVariable, attribute: str, shape: tuple[int, ...], dtype: str
) -> StreamedVariable:
    made = (variable.make.func, variable.make.args, variable.make.keywords) if variable.make is not None else None
    identity = (attribute, variable.sources, made)
    return StreamedVariable(identity, shape, dtype, lambda: getattr(source.stored(variable), attribute))


def stored_type(quantization: str, kind: StorageKind) -> str:
    """Type in which CTranslate2 stores matrices and vectors for a quantisation."""
    if kind == "matrix":
        return "int8" if quantization in INT8 else quantization
    half = quantization.removeprefix("int8_")
    return half if half in ("float16", "bfloat16") else "float32"
