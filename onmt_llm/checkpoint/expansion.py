"""Models with twins of blocks: which weights are in the checkpoint of the base, and which in that of the twins."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import ExpansionSpec
from onmt_llm.errors import CheckpointError
from onmt_llm.nn.expand import TWIN

_IN_PAIR = re.compile(rf"((?:encoder|decoder)\.layers\.\d+)\.(?:base|{TWIN})\.(.+)")
_IN_BLOCK = re.compile(r"((?:encoder|decoder)\.layers\.\d+)\.(.+)")


def expansion_spec(checkpoint: Checkpoint) -> ExpansionSpec:
    """The settings of a checkpoint of twins.

    Raises:
        CheckpointError: It holds none.
    """
    spec = checkpoint.config.expansion
    if spec is None or spec.type != "concat" or not checkpoint.is_adapter:
        raise CheckpointError(
            f"{checkpoint.path} must hold the twins of blocks, but does not.",
            hint="expand_type: stack trains whole models, which need no merging",
        )
    return spec


def pair_reader(base: Checkpoint, twins: Checkpoint | None) -> Callable[[str], Tensor]:
    """What reads the tensors of a model with pairs, by their names in it.

    Args:
        base: Holds the weights of the frozen blocks, and of all else.
        twins: Holds those of the twins; None = they are new, and begin as the blocks beside them.
    """

    def read(name: str) -> Tensor:
        if twins is not None and f".{TWIN}." in name:
            return twins.tensor(name)
        return base.tensor(_IN_PAIR.sub(r"\1.\2", name))

    return read


def in_base(paths: Sequence[str], blocks: Collection[str]) -> list[str]:
    """Where layers of a plain model are once the twins stand beside `blocks`: in the frozen halves of the pairs."""
    return [
        f"{found[1]}.base.{found[2]}" if (found := _IN_BLOCK.fullmatch(path)) and found[1] in blocks else path
        for path in paths
    ]


def check_twins(twins: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise one `CheckpointError` with all tensors that are missing, too many or of another shape than their blocks'.

    Args:
        twins: The twins.
        shapes: Of the base's tensors.
    """
    wanted = {twin: shapes[name] for name in shapes if (twin := twin_name(name, expansion_spec(twins).blocks))}
    here = set(twins.adapter_names())
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - here)]
    problems += [f"{name} belongs to no block" for name in sorted(here - wanted.keys())]
    problems += [
        f"{name} is {list(twins.shape(name))} instead of {list(wanted[name])}"
        for name in sorted(here & wanted.keys())
        if twins.shape(name) != wanted[name]
    ]
    if problems:
        raise CheckpointError(f"The twins of {twins.path} must fit their base, but: {'; '.join(problems)}.")


def twin_name(name: str, blocks: Collection[str]) -> str | None:
    """Name of the twin's tensor for one of the base's; None where there is no twin."""
    found = _IN_BLOCK.fullmatch(name)
    return f"{found[1]}.{TWIN}.{found[2]}" if found and found[1] in blocks else None
