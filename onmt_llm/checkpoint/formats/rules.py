"""Weight-name rules: how the tensors of another format map to ours, in both directions.

A rule is our tensor names, their tensor names, and an operation between the two lists. Names may contain `{i}`, the
number of the layer, and `{e}`, that of an expert. `apply` first runs all operations on shapes only, so one error lists
everything that is missing, unused or misshaped before any data is read; then it streams the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from onmt_llm.checkpoint.formats.ops import IDENTITY, Inverse, Op
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError


class TensorSource(Protocol):
    """Named tensors, read one at a time."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Rule:
    """`op.forward` makes `ours` from `theirs`; `op.backward` does the reverse."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    op: Op = IDENTITY

    @property
    def reversed(self) -> Rule:
        return Rule(self.theirs, self.ours, Inverse(self.op))


def rule(ours: str | Sequence[str], theirs: str | Sequence[str], op: Op | None = None) -> Rule:
    """Build a rule; a single name may be a string."""
    names = [(side,) if isinstance(side, str) else tuple(side) for side in (ours, theirs)]
    return Rule(names[0], names[1], op or IDENTITY)


def per_layer(rules: Iterable[Rule], layers: int) -> list[Rule]:
    """The rules, with those that contain `{i}` repeated for each layer."""
    return repeated(rules, "{i}", layers)


def repeated(rules: Iterable[Rule], place: str, count: int) -> list[Rule]:
    """The rules, with those that contain `place` repeated for each number below `count`."""

    def fill(names: tuple[str, ...], number: int) -> tuple[str, ...]:
        return tuple(name.replace(place, str(number)) for name in names)

    out = []
    for one in rules:
        if any(place in name for name in one.ours + one.theirs):
            out += [replace(one, ours=fill(one.ours, n), theirs=fill(one.theirs, n)) for n in range(count)]
        else:
            out.append(one)
    return out


def overridden(rules: Iterable[Rule], others: Sequence[Rule]) -> list[Rule]:
    """`rules`, with `others` in place of those for the same tensors of ours."""
    replaced = {name for one in others for name in one.ours}
    return [*(one for one in rules if not replaced.intersection(one.ours)), *others]


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
        rules = _applied(rules, source)
        expected = shapes(rules, source)
    check(rules, source, expected, ignore=ignore, what=what)
    return _stream(rules, source, expected)


def shapes(rules: Iterable[Rule], source: TensorSource) -> dict[str, tuple[int, ...]]:
    """Shapes of all our tensors that the rules make of those that `source` holds."""
    return {name: shape for one in _applied(rules, source) for name, shape in _shapes(one, source).items()}


def _applied(rules: Iterable[Rule], source: TensorSource) -> list[Rule]:
    """The rules whose tensors `source` holds."""
    here = set(source.names())
    return [one for one in rules if here.issuperset(one.theirs)]


def check_sizes(model: ModelConfig, source: TensorSource, path: Path, *, rows: bool = True) -> None:
    """Refuse an architecture that cannot match the tensors, before anything of its size is allocated.

    Args:
        model: The architecture in the configuration.
        source: The tensors.
        path: Where both are, for the message.
        rows: The embedding is among the tensors.

    Raises:
        CheckpointError: There are more layers or experts than tensors, or the vocabulary is larger than any tensor.
    """
    names = source.names()
    found = [source.shape(name) for name in names]
    matrices = sum(shape[0] if len(shape) == 3 else 1 for shape in found)
    if model.encoder_layers + model.decoder_layers > len(names) or model.experts_in_all_layers > matrices:
        raise CheckpointError(
            f"The configuration of {path} must fit its weights, but has {model.counts}, while there are only "
            f"{len(names)} tensors."
        )
    largest = max((max(shape, default=1) for shape in found), default=0)
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
