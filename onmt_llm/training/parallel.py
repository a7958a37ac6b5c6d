"""Training with weights, gradients and optimiser divided among the ranks (FSDP2).

`Trainee` is what the loop calls: its forward pass is the loss. `shard` divides it: each block gathers its weights when
it runs, and the gradients of each block are summed and divided again in the backward pass. All ranks must then run the
same number of forward and backward passes, which `in_step` sees to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.token_loss import TokenLoss
from onmt_llm.training.process.dist import World


class Trainee(nn.Module):
    """A model whose forward pass is the loss of a batch.

    Args:
        model: The model.

    Attributes:
        gradient_ranks: Number of ranks over which the backward pass averages the gradients; 1 = it leaves each rank its
            own.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model
        self.gradient_ranks = 1

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the weights."""
        return self.gradient_ranks > 1

    def forward(self, batch: Batch, *, scale: float = 1.0, **options: Any) -> TokenLoss:
        """See `batch_loss`. After the backward pass the gradients are sums, whether divided or not."""
        return batch_loss(self.model, batch, scale=scale * self.gradient_ranks, **options)


def shard(trainee: Trainee, world: World, *, shard_size: int = 0) -> None:
    """Divide the weights of `trainee` among the ranks, in place: each block apart, and then the rest.

    Args:
        trainee: With equal weights on all ranks, on their devices.
        world: This process among the others.
        shard_size: Ranks that share one copy of the weights; every such group has a copy of its own (HSDP). 0 = all.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind, size = world.device.type, shard_size or world.size
    if size == world.size:
        mesh = init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(kind, (world.size // size, size), mesh_dim_names=("replicate", "shard"))
    for stack in (trainee.model.encoder, trainee.model.decoder):
        for block in () if stack is None else stack.layers:
            fully_shard(block, mesh=mesh)
    fully_shard(trainee, mesh=mesh)
    trainee.gradient_ranks = world.size


def release(trainee: Trainee) -> None:
    """After forward passes without a backward pass: give up the weights that were gathered for it."""
    if trainee.is_sharded:
        cast(Any, trainee).reshard()


@contextmanager
def whole_weights(trainee: Trainee) -> Iterator[None]:
    """A context in which each rank holds all weights, and runs the model as often as it likes; nothing is trained.

    The beginning communicates, what follows does not.
    """
    if not trainee.is_sharded:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    blocks, unit = [part for part in trainee.model.modules() if isinstance(part, FSDPModule)], cast(Any, trainee)
    unit.set_reshard_after_forward(False)
    for part in (unit, *blocks):
        part.unshard()
    try:
        yield
    finally:
        for part in (unit, *blocks):
            part.reshard()
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)


def in_step(batches: Iterable[Batch], world: World, *, sharded: bool) -> Iterator[tuple[Batch, bool]]:
    """Batches, each with whether it counts.

    If weights are sharded, a rank whose batches have ended repeats its last one, which then does not count, until
    all ranks' have; a rank that never had one gets another rank's. Otherwise each rank ends on its own.
    """
    if not sharded:
        yield from ((batch, True) for batch in batches)
        return
    stream, last = iter(batches), None
    while True:
        batch = next(stream, None)
        if not world.any(batch is not None):
            return
        if world.any(batch is None and last is None):
            records = world.gather(_to_record(batch) if batch is not None else {})
            last = _from_record(next(filter(None, records)))
        last = batch or last
        assert last is not None
        yield last, batch is not None


def _to_record(batch: Batch) -> dict[str, Any]:
    """The batch as plain data."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}


def _from_record(record: dict[str, Any]) -> Batch:
    values: dict[str, Any] = {
        name: torch.tensor(value) if isinstance(value, list) else value for name, value in record.items()
    }
    return Batch(**values)
