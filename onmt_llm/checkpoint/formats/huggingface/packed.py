"""Weights of a few bits, packed in 32-bit words, with a factor per group of inputs: GPTQ, AWQ, compressed-tensors.

All store a weight as `(code - zero) * scale`. They differ in what is packed along which dimension and in what order:

- GPTQ packs along the inputs, zeros along the outputs, codes as one stream of bits; `g_idx` names the group of each
  input. The first version of the format stores zero - 1. (AutoGPTQ, GPTQModel)
- AWQ packs both along the outputs, eight at a time in the order 0 2 4 6 1 3 5 7. (AutoAWQ, `gemm`)
- compressed-tensors (`pack-quantized`) packs the weight along the inputs and zeros along the outputs. Without zeros,
  the zero is the middle of the range.

Shape letters: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onmt_llm.checkpoint.formats.imported import NUMBERS, TypedSource

WORD = 32
"""Bits of a word."""
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output that each 4 bits of a word are of, from the lowest."""


def unpacked(words_WN: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of each column, a stream of bits from the lowest of its first word: (count, N), uint8."""
    shared = math.gcd(bits, WORD)
    period, step = WORD // shared, bits // shared
    codes = words_WN.new_empty(len(words_WN) // step * period, words_WN.shape[1], dtype=torch.uint8)
    for k in range(period):
        word, shift = divmod(k * bits, WORD)
        code = words_WN[word::step] >> shift
        if shift + bits > WORD:
            code = (code & 2 ** (WORD - shift) - 1) | (words_WN[word + 1 :: step] << (WORD - shift))
        codes[k::period] = (code & 2**bits - 1).to(torch.uint8)
    return codes[:count]


@dataclass(frozen=True)
class Packed:
    """How one weight is packed.

    Attributes:
        shape: (O, I).
        used: Names of all tensors that it is stored in.
        stem: Name of the layer, with a dot.
        bits: Bits of a code.
        group_size: Inputs of a group, if there is no list of groups.
        offset: GPTQ: what is added to the stored zeros.
        parts: From the stored tensors to codes (I, O), zeros (G, O) and scales (G, O).
    """

    shape: tuple[int, ...]
    used: tuple[str, ...]
    stem: str
    bits: int
    group_size: int
    parts: Callable[[Packed, TypedSource], tuple[Tensor, Tensor, Tensor]]
    offset: int = 0

    def decode(self, source: TypedSource, name: str) -> Tensor:
        codes_IO, zeros_GO, scales_GO = self.parts(self, source)
        group_I = self._groups(source)
        weight_IO = torch.empty(codes_IO.shape)
        for group, (zero_O, scale_O) in enumerate(zip(zeros_GO, scales_GO, strict=True)):
            rows = group_I == group
            weight_IO[rows] = (codes_IO[rows].float() - zero_O.float()) * scale_O.float()
        return weight_IO.t().contiguous()

    def read(self, source: TypedSource, end: str) -> Tensor:
        return source.tensor(f"{self.stem}{end}")

    def _groups(self, source: TypedSource) -> Tensor:
        """The group of each input, (I,)."""
        listed = next((name for name in self.used if name.endswith("g_idx")), None)
        return source.tensor(listed) if listed else torch.arange(self.shape[1]) // self.group_size


def _gptq_parts(packed: Packed, source: TypedSource) -> tuple[Tensor, Tensor, Tensor]:
    outputs, inputs = packed.shape
    stored_GO = unpacked(packed.read(source, "qzeros").t(), packed.bits, outputs).t()
    zeros_GO = (stored_GO + packed.offset) & 2**packed.bits - 1
    return unpacked(packed.read(source, "qweight"), packed.bits, inputs), zeros_GO, packed.read(source, "scales")


def _awq_parts(packed: Packed, source: TypedSource) -> tuple[Tensor, Tensor, Tensor]:
    def codes(end: str) -> Tensor:
        words = packed.read(source, end)
        in_order = unpacked(words.reshape(1, -1), packed.bits, len(_AWQ_ORDER))[torch.tensor(_AWQ_ORDER).argsort()]
        return in_order.t().reshape(len(words), -1)

    return codes("qweight"), codes("qzeros"), packed.read(source, "scales")


def _compressed_parts(packed: Packed, source: TypedSource) -> tuple[Tensor, Tensor, Tensor]:
    outputs, inputs = packed.shape
    scales_GO = packed.read(source, "weight_scale").reshape(outputs, -1).t()
    zeros_GO = torch.full_like(scales_GO, 2 ** (packed.bits - 1))
    if f"{packed.stem}weight_zero_point" in packed.used:
        zeros_GO = unpacked(packed.read(source, "weight_zero_point"), packed.bits, outputs).t()
    return unpacked(packed.read(source, "weight_packed").t(), packed.bits, inputs), zeros_GO, scales_GO


def find_packed(source: TypedSource, settings: Mapping[str, Any]) -> dict[str, Packed]:
    """The packed weights that can be decoded, by name of the weight.

    Args:
        source: The tensors as stored.
        settings: `quantization_config` of config.json.
    """
    here = set(source.names())
    found: dict[str, Packed] = {}
    for name in here:
        stem, _, end = name.rpartition(".")
        readers = {"qweight": (_gptq, _awq), "weight_packed": (_compressed,)}.get(end, ())
        packed = next((one for reader in readers if (one := reader(source, here, f"{stem}.", settings))), None)
        if packed is not None and source.dtype(name) == torch.int32:
            found[f"{stem}.weight"] = packed
    return found


def _names(here: set[str], stem: str, needed: Sequence[str], optional: Sequence[str]) -> tuple[str, ...] | None:
    """Names of the tensors of a layer: all of `needed`, and those of `optional` that are there."""
    names = tuple(f"{stem}{end}" for end in needed)
    return (*names, *(f"{stem}{end}" for end in optional if f"{stem}{end}" in here)) if here.issuperset(names) else None


def _gptq(source: TypedSource, here: set[str], stem: str, settings: Mapping[str, Any]) -> Packed | None:
    used = _names(here, stem, ("qweight", "qzeros", "scales"), ("g_idx",))
    bits, version = int(settings.get("bits") or 0), settings.get("checkpoint_format") or "gptq"
    known = bits in (2, 3, 4, 8) and version in ("gptq", "gptq_v2")
    if used is None or settings.get("quant_method") != "gptq" or not known:
        return None
    (words, outputs), (groups, _) = source.shape(used[0]), source.shape(used[2])
    inputs = words * WORD // bits
    size = _group_size(settings.get("group_size"), inputs)
    expected = [(words, outputs), (groups, outputs * bits // WORD), (groups, outputs), (inputs,)]
    if [source.shape(name) for name in used] != expected[: len(used)] or groups != math.ceil(inputs / size):
        return None
    return Packed((outputs, inputs), used, stem, bits, size, _gptq_parts, offset=1 if version == "gptq" else 0)


def _awq(source: TypedSource, here: set[str], stem: str, settings: Mapping[str, Any]) -> Packed | None:
    used = _names(here, stem, ("qweight", "qzeros", "scales"), ())
    bits = int(settings.get("bits") or settings.get("w_bit") or 0)
    known = bits == 4 and str(settings.get("version", "gemm")).lower() == "gemm"
    if used is None or settings.get("quant_method") != "awq" or not known:
        return None
    (inputs, words), (groups, outputs) = source.shape(used[0]), source.shape(used[2])
    size = _group_size(settings.get("group_size") or settings.get("q_group_size"), inputs)
    fits = words * WORD == outputs * bits and source.shape(used[1]) == (groups, words)
    if not fits or groups != math.ceil(inputs / size):
        return None
    return Packed((outputs, inputs), used, stem, bits, size, _awq_parts)


def _compressed(source: TypedSource, here: set[str], stem: str, settings: Mapping[str, Any]) -> Packed | None:
    needed, optional = ("weight_packed", "weight_scale", "weight_shape"), ("weight_zero_point", "weight_g_idx")
    used = _names(here, stem, needed, optional)
    if used is None or source.shape(used[2]) != (2,) or source.dtype(used[1]) not in NUMBERS:
        return None
    outputs, inputs = (int(size) for size in source.tensor(used[2]).tolist())
    words, scales = source.shape(used[0]), source.shape(used[1])
    bits = next((bits for bits in (4, 8) if words == (outputs, math.ceil(inputs * bits / WORD))), None)
    groups = scales[1] if len(scales) == 2 else 1
    if bits is None or scales[0] != outputs or groups < 1 or inputs % groups:
        return None
    zeros = f"{stem}weight_zero_point"
    if zeros in used and source.shape(zeros) != (math.ceil(outputs * bits / WORD), groups):
        return None
    return Packed((outputs, inputs), used, stem, bits, inputs // groups, _compressed_parts)


def _group_size(stated: object, inputs: int) -> int:
    """Inputs of a group; -1 = all."""
    return stated if isinstance(stated, int) and stated > 0 else inputs
