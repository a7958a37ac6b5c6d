"""Training with weights, gradients and optimiser divided among the ranks (FSDP2, tensor parallel).

`Trainee` is what the loop calls: its forward pass is the loss. `shard` divides it: each block gathers its weights when
it runs, and the gradients of each block are summed and divided again in the backward pass. All ranks must then run the
same number of forward and backward passes, which `in_step` sees to.

With `tensor_parallel` neighbouring ranks compute each block together: each has a part of the heads and of the inner
values of the feed-forward layer (Shoeybi et al. 2019), and weights are gathered among the ranks with the same part.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.token_loss import TokenLoss
from onmt_llm.training.process.dist import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ROW_WISE = ("o_proj", "down_proj")
"""Layers whose inputs are divided; of all others in a block the outputs are."""


class Trainee(nn.Module):
    """A model whose forward pass is the loss of a batch.

    Args:
        model: The model.
        reference: The reference model of a preference loss, if it is to be divided too; `forward` does not call it.

    Attributes:
        is_sharded: Whether each rank holds a part of the weights.
        gradient_ranks: Number of ranks over which the backward pass averages the gradients; 1 = it leaves each rank its
            own.
    """

    is_sharded = False
    gradient_ranks = 1

    def __init__(self, model: Transformer, reference: Transformer | None = None) -> None:
        super().__init__()
        self.model, self.reference = model, reference

    def forward(self, batch: Batch, *, scale: float = 1.0, **options: Any) -> TokenLoss:
        """See `batch_loss`. After the backward pass the gradients are sums, whether divided or not."""
        return batch_loss(self.model, batch, scale=scale * self.gradient_ranks, **options)


def shard(trainee: Trainee, world: World, *, shard_size: int = 0, autocast: torch.dtype | None = None) -> None:
    """Divide the weights of `trainee` among the ranks, in place: each block apart, and then the rest.

    Args:
        trainee: With equal weights on all ranks, on their devices; or on the meta device.
        world: This process among the others.
        shard_size: Ranks (of those with the same part of the heads) that share one copy of the weights; every such
            group has a copy of its own (HSDP). 0 = all.
        autocast: Type that `torch.autocast` computes in. The weights of blocks are gathered in it: autocast would keep
            a copy of each until the backward pass. None = it is off.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    size, names = shard_size or world.data_size, ("replicate", "shard", "tensor")
    whole_mesh = init_device_mesh(
        world.device.type, (world.data_size // size, size, world.tensor_parallel), mesh_dim_names=names
    )
    mesh = whole_mesh["shard"] if size == world.data_size else whole_mesh["replicate", "shard"]
    if world.tensor_parallel > 1:
        _divide_blocks(trainee, whole_mesh["tensor"])
    # bf16 sums over many ranks would round away what each adds.
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    gathered = MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in _blocks(trainee):
        fully_shard(block, mesh=mesh, mp_policy=gathered)
    fully_shard(trainee, mesh=mesh, mp_policy=whole)
    trainee.is_sharded, trainee.gradient_ranks = True, world.data_size


def _divide_blocks(trainee: Trainee, mesh: DeviceMesh) -> None:
    """Give each rank a part of the heads and of the inner values of all blocks (tensor parallel)."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    # It says of every gathered tensor that the weights are divided twice.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for block in _blocks(trainee):
        linears = [path for path, module in block.named_modules() if isinstance(module, nn.Linear)]
        plan = {path: RowwiseParallel() if path.endswith(ROW_WISE) else ColwiseParallel() for path in linears}
        parallelize_module(block, mesh, plan)  # type: ignore[arg-type]


def _blocks(trainee: Trainee) -> Iterator[nn.Module]:
    """The blocks of all stacks."""
    for model in (trainee.model, trainee.reference):
        for stack in () if model is None else (model.encoder, model.decoder):
            yield from () if stack is None else stack.layers


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
        for block in _blocks(trainee):
            cast(Any, block).set_reshard_after_forward(True, recurse=False)


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
