"""Operations of weight-name rules: what is done to the tensors of another format to make ours, and its reverse.

Every operation also works on meta tensors, so shapes are known before any data is read.

Shape letters: O output rows, D input columns, N heads, K key/value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Op(Protocol):
    """An invertible operation from their tensors to ours. It must also work on meta tensors."""

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]: ...

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Identity:
    """The same tensor under another name."""

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return list(theirs)

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return list(ours)


IDENTITY = Identity()


@dataclass(frozen=True)
class Scale:
    """Our tensor is theirs times a factor."""

    factor: float

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor * self.factor for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor / self.factor for tensor in ours]


@dataclass(frozen=True)
class Offset:
    """Our tensor is theirs plus a number, in float32: there 1 + w is exact for bfloat16 weights w above 2^-16."""

    number: float

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.float() + self.number for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.float() - self.number for tensor in ours]


@dataclass(frozen=True)
class InterleavedRotary:
    """Their rotary pairs are interleaved (2j, 2j+1); ours are in halves (j, j + rotary/2).

    Applies to the rows of everything that produces q or k: weights (O, D), biases (O,), `lora_b` (O, r). Rows of a head
    beyond `rotary_dim` stay in place.

    Attributes:
        head_dim: Rows per head.
        rotary_dim: Rotated rows of a head; None = all.
    """

    head_dim: int
    rotary_dim: int | None = None

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [self._permute(tensor, interleaved=True) for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [self._permute(tensor, interleaved=False) for tensor in ours]

    def _permute(self, tensor: Tensor, *, interleaved: bool) -> Tensor:
        rotary = self.rotary_dim or self.head_dim
        heads = tensor.reshape(-1, self.head_dim, *tensor.shape[1:])
        rotated, rest = heads[:, :rotary], heads[:, rotary:]
        split = (rotary // 2, 2) if interleaved else (2, rotary // 2)
        permuted = rotated.reshape(-1, *split, *tensor.shape[1:]).transpose(1, 2).reshape(rotated.shape)
        return _joined([permuted, rest], dim=1).reshape(tensor.shape)


@dataclass(frozen=True)
class RotatedLast:
    """The rotated rows of a head are its last ones; ours are its first.

    Attributes:
        head_dim: Rows per head.
        rotary_dim: Rotated rows of a head.
    """

    head_dim: int
    rotary_dim: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [self._roll(tensor, self.rotary_dim) for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [self._roll(tensor, -self.rotary_dim) for tensor in ours]

    def _roll(self, tensor: Tensor, rows: int) -> Tensor:
        heads = tensor.reshape(-1, self.head_dim, *tensor.shape[1:])
        return heads.roll(rows, dims=1).reshape(tensor.shape)


@dataclass(frozen=True)
class GroupedQKV:
    """q, k and v in one matrix, group by group: rows (K, N/K + 2, H); each group has its queries, one key, one value.

    Covers Falcon's three layouts: multi-query (K = 1), grouped-query, and one group per head (K = N, as GPT-NeoX).
    """

    heads: int
    kv_heads: int
    head_dim: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        (fused,) = theirs
        rest = fused.shape[1:]
        groups = fused.reshape(self.kv_heads, self.heads // self.kv_heads + 2, self.head_dim, *rest)
        parts = groups[:, :-2], groups[:, -2], groups[:, -1]
        return [part.reshape(-1, *rest) for part in parts]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        q, k, v = (tensor.reshape(self.kv_heads, -1, self.head_dim, *tensor.shape[1:]) for tensor in ours)
        return [_joined([q, k, v], dim=1).reshape(-1, *ours[0].shape[1:])]


@dataclass(frozen=True)
class SplitRows:
    """Several of our tensors are concatenated along the rows of one of theirs.

    Attributes:
        sizes: Number of rows of each.
    """

    sizes: tuple[int, ...]

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        (fused,) = theirs
        return list(fused.split(list(self.sizes), dim=0))

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [_joined(list(ours), dim=0)]


@dataclass(frozen=True)
class Alternating:
    """The rows of several of our tensors alternate in one of theirs."""

    count: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        (mixed,) = theirs
        return [mixed[first :: self.count] for first in range(self.count)]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack(list(ours), dim=1).flatten(0, 1)]


@dataclass(frozen=True)
class Stacked:
    """One of theirs holds `count` tensors, one after the other in a first dimension; `op` makes some of ours of each.

    Attributes:
        count: Length of that dimension.
        op: From one of them to ours.
    """

    count: int
    op: Op = IDENTITY

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        (stack,) = theirs
        return [tensor for one in stack.unbind() for tensor in self.op.forward([one])]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        each = len(ours) // self.count
        return [torch.stack([self.op.backward(ours[i : i + each])[0] for i in range(0, len(ours), each)])]


@dataclass(frozen=True)
class DropRows:
    """Their first rows are left out, and become zeros on the way back: nothing reads them."""

    count: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor[self.count :] for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [_joined([tensor.new_zeros(self.count, *tensor.shape[1:]), tensor]) for tensor in ours]


@dataclass(frozen=True)
class Shards:
    """Their tensors are equal parts of ours along `dim` (tensor parallelism)."""

    count: int
    dim: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [_joined(list(theirs), dim=self.dim)]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        (whole,) = ours
        return list(whole.chunk(self.count, dim=self.dim))


@dataclass(frozen=True)
class Replicated:
    """Every tensor-parallel shard holds the whole tensor; the first is used."""

    count: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [theirs[0]]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0]] * self.count


@dataclass(frozen=True)
class Columns:
    """An operation on rows, applied to columns."""

    op: Op

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.t() for tensor in self.op.forward([tensor.t() for tensor in theirs])]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.t() for tensor in self.op.backward([tensor.t() for tensor in ours])]


@dataclass(frozen=True)
class Transpose:
    """Their matrices are (D, O); vectors are the same."""

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.t() for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.t() for tensor in ours]


@dataclass(frozen=True)
class Reshape:
    """The same values in another shape."""

    theirs: tuple[int, ...]
    ours: tuple[int, ...]

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.reshape(self.ours) for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.reshape(self.theirs) for tensor in ours]


@dataclass(frozen=True)
class Chain:
    """Operations in sequence, starting with the one closest to their format."""

    ops: tuple[Op, ...]

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        tensors = list(theirs)
        for op in self.ops:
            tensors = op.forward(tensors)
        return tensors

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        tensors = list(ours)
        for op in reversed(self.ops):
            tensors = op.backward(tensors)
        return tensors


@dataclass(frozen=True)
class Each:
    """An operation for each of several tensors."""

    ops: tuple[Op, ...]

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [op.forward([tensor])[0] for op, tensor in zip(self.ops, theirs, strict=True)]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [op.backward([tensor])[0] for op, tensor in zip(self.ops, ours, strict=True)]


@dataclass(frozen=True)
class Inverse:
    """An operation, reversed."""

    op: Op

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return self.op.backward(theirs)

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return self.op.forward(ours)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, which imports torch's compiler for meta tensors: 70 MB, where a shape is all that is wanted."""
    if not tensors[0].is_meta:
        return torch.cat(list(tensors), dim=dim)
    rests = {(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in tensors}
    if len(rests) > 1:
        raise ValueError(f"only dimension {dim} may differ in {', '.join(str(tuple(t.shape)) for t in tensors)}")
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return tensors[0].new_empty(shape)
