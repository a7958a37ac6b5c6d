"""MXFP4 (Open Compute Project, Microscaling Formats 1.0): gpt-oss' experts in 4 bits, with a power of two for each 32.

A tensor `NAME` is stored as `NAME_blocks`, two numbers per byte with the first in the lower bits, and `NAME_scales`,
the exponent of each block plus 127. The results are exact in bfloat16, as far as they are within its range.

Shape letters: E experts, O outputs, I inputs, G blocks of an output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onmt_llm.checkpoint.formats.imported import TypedSource

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BLOCK = 32
_BIAS = 127


@dataclass(frozen=True)
class Mxfp4:
    """How the matrices of all experts of a layer are stored; they are transposed, as in the model of transformers.

    Attributes:
        shape: (E, I, O).
        used: Names of the blocks (E, O, G, 16) and of the scales (E, O, G).
    """

    shape: tuple[int, ...]
    used: tuple[str, ...]

    def decode(self, source: TypedSource, name: str) -> Tensor:
        blocks_EOGX, scales_EOG = (source.tensor(one) for one in self.used)
        weight_EOI = torch.empty(self.shape[0], self.shape[2], self.shape[1], dtype=torch.bfloat16)
        for weight_OI, blocks_OGX, scales_OG in zip(weight_EOI, blocks_EOGX, scales_EOG, strict=True):
            weight_OI.copy_(decoded(blocks_OGX, scales_OG))
        return weight_EOI.mT


def decoded(blocks_OGX: Tensor, scales_OG: Tensor) -> Tensor:
    """The numbers of one matrix, (O, I), in bfloat16."""
    table = torch.tensor((*_VALUES, *(-value for value in _VALUES)), dtype=torch.bfloat16)
    codes_OGX = torch.stack([blocks_OGX & 15, blocks_OGX >> 4], dim=-1).flatten(-2)
    exponents_OG1 = scales_OG.int().unsqueeze(-1) - _BIAS
    return torch.ldexp(table[codes_OGX.int()], exponents_OG1).to(torch.bfloat16).flatten(-2)


def find_mxfp4(source: TypedSource) -> dict[str, Mxfp4]:
    """The tensors that are stored in MXFP4, by name."""
    here, found = set(source.names()), {}
    for name in here:
        stem = name.removesuffix("_blocks")
        used = (name, f"{stem}_scales")
        if stem != name and used[1] in here and all(source.dtype(one) == torch.uint8 for one in used):
            shape = source.shape(name)
            if len(shape) == 4 and shape[3] == _BLOCK // 2 and source.shape(used[1]) == shape[:3]:
                found[stem] = Mxfp4((shape[0], shape[2] * _BLOCK, shape[1]), used)
    return found
