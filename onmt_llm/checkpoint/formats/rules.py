"""Weight-name rules: how the tensors of another format map to ours, in both directions.

A rule is our tensor names, their tensor names, and an operation between the two lists. Names may contain `{i}`, the
number of the layer. `apply` first runs all operations on shapes only, so one error lists everything that is missing,
unused or misshaped before any data is read; then it streams the tensors.

Shape letters: O output rows, D input columns, N heads, K key/value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError


class TensorSource(Protocol):
    """Named tensors, read one at a time."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


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


@dataclass(frozen=True)
class Scale:
    """Our tensor is theirs times a factor."""

    factor: float

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor * self.factor for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor / self.factor for tensor in ours]


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
        return torch.cat([permuted, rest], dim=1).reshape(tensor.shape)


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
        return [torch.cat([q, k, v], dim=1).reshape(-1, *ours[0].shape[1:])]


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
        return [torch.cat(list(ours), dim=0)]


@dataclass(frozen=True)
class DropRows:
    """Their first rows are left out, and become zeros on the way back: nothing reads them."""

    count: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor[self.count :] for tensor in theirs]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([tensor.new_zeros(self.count, *tensor.shape[1:]), tensor]) for tensor in ours]


@dataclass(frozen=True)
class Shards:
    """Their tensors are equal parts of ours along `dim` (tensor parallelism)."""

    count: int
    dim: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(list(theirs), dim=self.dim)]

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
class Inverse:
    """An operation, reversed."""

    op: Op

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return self.op.backward(theirs)

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return self.op.forward(ours)


@dataclass(frozen=True)
class Rule:
    """`op.forward` makes `ours` from `theirs`; `op.backward` does the reverse."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    op: Op = Identity()

    @property
    def reversed(self) -> Rule:
        return Rule(self.theirs, self.ours, Inverse(self.op))


def rule(ours: str | Sequence[str], theirs: str | Sequence[str], op: Op | None = None) -> Rule:
    """Build a rule; a single name may be a string."""
    names = [(side,) if isinstance(side, str) else tuple(side) for side in (ours, theirs)]
    return Rule(names[0], names[1], op or Identity())


def per_layer(rules: Iterable[Rule], layers: int) -> list[Rule]:
    """The rules, with those that contain `{i}` repeated for each layer."""

    def fill(names: tuple[str, ...], i: int) -> tuple[str, ...]:
        return tuple(name.replace("{i}", str(i)) for name in names)

    out = []
    for one in rules:
        if any("{i}" in name for name in one.ours + one.theirs):
            out += [replace(one, ours=fill(one.ours, i), theirs=fill(one.theirs, i)) for i in range(layers)]
        else:
            out.append(one)
    return out


def apply(
    rules: Sequence[Rule],
    source: TensorSource,
    expected: Mapping[str, tuple[int, ...]] | None,
    *,
    ignore: Sequence[str] = (),
    what: str = "the model",
) -> Iterator[tuple[str, Tensor]]:
    """Stream our tensors from `source`, with one rule's tensors in memory at a time.

    Args:
        rules: With `{i}` filled in.
        source: Their tensors.
        expected: Shapes of all our tensors; None = whatever the source yields.
        ignore: Patterns (`fnmatch`) of source tensors to skip, e.g. "*.rotary_emb.inv_freq".
        what: Name of the source in messages.

    Raises:
        CheckpointError: Tensors are missing, unused or misshaped; lists all, before reading any.
    """
    if expected is None:
        here = set(source.names())
        rules = [one for one in rules if here.issuperset(one.theirs)]
        expected = {name: shape for one in rules for name, shape in _shapes(one, source).items()}
    check(rules, source, expected, ignore=ignore, what=what)
    return _stream(rules, source, expected)


def check_sizes(model: ModelConfig, source: TensorSource, path: Path, *, rows: bool = True) -> None:
    """Refuse an architecture that cannot match the tensors, before anything of its size is allocated.

    Args:
        model: The architecture in the configuration.
        source: The tensors.
        path: Where both are, for the message.
        rows: The embedding is among the tensors.

    Raises:
        CheckpointError: There are more layers than tensors, or the vocabulary is larger than any tensor.
    """
    names = source.names()
    if model.encoder_layers + model.decoder_layers > len(names):
        raise CheckpointError(
            f"The configuration of {path} must fit its weights, but has encoder_layers {model.encoder_layers} and "
            f"decoder_layers {model.decoder_layers}, while there are only {len(names)} tensors."
        )
    largest = max((max(source.shape(name), default=1) for name in names), default=0)
    if rows and model.vocab_size > largest:
        raise CheckpointError(
            f"The configuration of {path} must fit its weights, but has vocab_size {model.vocab_size}, while no "
            f"tensor is longer than {largest}."
        )


def check(
    rules: Sequence[Rule],
    source: TensorSource,
    expected: Mapping[str, tuple[int, ...]],
    *,
    ignore: Sequence[str] = (),
    what: str = "the model",
) -> None:
    """Raise one `CheckpointError` with every missing, unused and misshaped tensor, from names and shapes only."""
    here = set(source.names())
    wanted = [one for one in rules if any(name in expected for name in one.ours)]
    used = {name for one in wanted for name in one.theirs}
    problems = [f"missing: {name}" for name in sorted(used - here)]
    unused = [name for name in sorted(here - used) if not any(fnmatchcase(name, pattern) for pattern in ignore)]
    problems += [f"not used: {name} {list(source.shape(name))}" for name in unused]
    filled = {name for one in wanted for name in one.ours}
    problems += [f"no source: {name}" for name in sorted(expected.keys() - filled)]
    for one in wanted:
        if here.issuperset(one.theirs):
            problems += _misshaped(one, source, expected)
    if problems:
        raise CheckpointError(
            f"The tensors of {what} do not fit its configuration; {len(problems)} problems:\n  " + "\n  ".join(problems)
        )


def _shapes(one: Rule, source: TensorSource) -> dict[str, tuple[int, ...]]:
    """Shapes of the rule's results, from running it on meta tensors."""
    outputs = one.op.forward([torch.empty(source.shape(name), device="meta") for name in one.theirs])
    return {name: tuple(output.shape) for name, output in zip(one.ours, outputs, strict=True)}


def _misshaped(one: Rule, source: TensorSource, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    stated = ", ".join(f"{name} {list(source.shape(name))}" for name in one.theirs)
    try:
        found = _shapes(one, source)
    except (RuntimeError, ValueError, IndexError) as error:
        return [f"wrong shape: {stated} cannot become {', '.join(one.ours)} ({error})"]
    return [
        f"wrong shape: {name} must be {list(expected[name])}, but {stated} gives {list(shape)}"
        for name, shape in found.items()
        if name in expected and shape != tuple(expected[name])
    ]


def _stream(
    rules: Sequence[Rule], source: TensorSource, expected: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    for one in rules:
        if any(name in expected for name in one.ours):
            outputs = one.op.forward([source.tensor(name) for name in one.theirs])
            while outputs:
                name = one.ours[len(one.ours) - len(outputs)]
                if name in expected:
                    yield name, outputs.pop(0)
                else:
                    outputs.pop(0)
