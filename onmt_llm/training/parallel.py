"""Training with weights, gradients and optimiser sharded among the ranks (FSDP2, tensor parallel).

`TrainingModule` is what the loop calls: its forward pass is the loss. After `shard` each block gathers its weights when
it runs, and the gradients of each block are summed and sharded again in the backward pass. All ranks must then run the
same number of forward and backward passes, which `in_step` sees to.

With `tensor_parallel` neighbouring ranks compute each block together: each has a part of the heads and of the inner
values of the feed-forward layer (Shoeybi et al. 2019), and weights are gathered among the ranks with the same part.
`Attention`, `FeedForward` and `RoutedExperts` do not know of it: while they run, they hold this rank's parts as
ordinary weights, and what they compute is this rank's summand of the output. So all that is inside them is sharded too:
adapters, int8 layers, norms of heads.
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
from onmt_llm.nn.layers.attention import Attention
from onmt_llm.nn.layers.experts import RoutedExperts
from onmt_llm.nn.layers.position_wise import FeedForward, HeadLayerNorm
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.token_loss import TokenLoss
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_COLUMN_WISE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers whose outputs are sharded."""
_ROW_WISE = ("o_proj", "down_proj")
"""Layers whose inputs are sharded."""


class TrainingModule(nn.Module):
    """A model whose forward pass is the loss of a batch.

    Args:
        model: The model.
        reference: The reference model of a preference loss, if it is to be sharded too; `forward` does not call it.

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
        """See `batch_loss`. After the backward pass the gradients are sums, whether sharded or not."""
        return batch_loss(self.model, batch, scale=scale * self.gradient_ranks, **options)


def shard(module: TrainingModule, world: World, *, shard_size: int = 0, autocast: torch.dtype | None = None) -> None:
    """Shard the weights of `module` over the ranks, in place: each block by itself, and then the rest.

    Args:
        module: With equal weights on all ranks, on their devices; or on the meta device.
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
        _parallelize_blocks(module, whole_mesh["tensor"])
    # bf16 sums over many ranks would round away what each adds.
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    gathered = MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in _blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=gathered)
    fully_shard(module, mesh=mesh, mp_policy=whole)
    module.is_sharded, module.gradient_ranks = True, world.data_size


def _parallelize_blocks(module: TrainingModule, mesh: DeviceMesh) -> None:
    """Give each rank a part of the heads and of the inner values of all blocks (tensor parallel)."""
    # It says of every gathered tensor that the weights are sharded twice.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for block in _blocks(module):
        # The outputs of routed experts are summed over the ranks once, not expert by expert.
        inside = {expert for layer in block.modules() if isinstance(layer, RoutedExperts) for expert in layer}
        for layer in block.modules():
            if isinstance(layer, Attention | FeedForward | RoutedExperts) and layer not in inside:
                _parallelize(layer, mesh)


def _parallelize(module: nn.Module, mesh: DeviceMesh) -> None:
    """Make a module whose inputs and output are whole on all ranks compute its output together with the others."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    spanning = [module.q_norm, module.k_norm] if isinstance(module, Attention) and not module.norm_heads else []
    for norm in filter(None, spanning):
        _compute_whole(norm, mesh)
    for path, owner in module.named_modules():
        for name, parameter in () if owner in spanning else owner.named_parameters(recurse=False):
            dimension = sharded_dimension(owner, f"{path}.{name}")
            placement = Replicate() if dimension is None else Shard(dimension)
            sharded = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
            owner.register_parameter(name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))
    forward = module.forward

    def entering(value: Any) -> Any:
        """An input, whose gradient is the sum of the gradients of all ranks."""
        if not (isinstance(value, Tensor) and value.requires_grad):
            return value
        return DTensor.from_local(value, mesh, [Replicate()]).to_local(grad_placements=[Partial()])

    def forward_together(*args: Any, **named: Any) -> Tensor:
        with _own_parts(module):
            summand = forward(*map(entering, args), **{name: entering(value) for name, value in named.items()})
        return DTensor.from_local(summand, mesh, [Partial()]).redistribute(placements=[Replicate()]).to_local()

    module.forward = forward_together


def _compute_whole(norm: nn.Module, mesh: DeviceMesh) -> None:
    """Make a norm over all heads gather its inputs: each rank computes the whole, and keeps its part."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import PrepareModuleInputOutput, parallelize_module

    gathered, sharded = Replicate(), Shard(-1)
    style = PrepareModuleInputOutput(
        input_layouts=sharded,
        desired_input_layouts=gathered,
        use_local_input=True,
        output_layouts=gathered,
        desired_output_layouts=sharded,
    )
    parallelize_module(norm, mesh, style)


def sharded_dimension(owner: nn.Module, path: str) -> int | None:
    """The dimension in which `tensor_parallel` shards a parameter; None = each rank has the whole.

    Args:
        owner: The module that has the parameter, in one of the modules that ranks compute together.
        path: Dotted path of the parameter; may begin anywhere above that.
    """
    *layers, name = path.split(".")
    if any(layer in _ROW_WISE for layer in layers):
        return 1 if name in ("weight", "lora_a") else None
    if any(layer in _COLUMN_WISE for layer in layers):
        return None if name == "lora_a" else 0
    return 0 if name == "sinks" or isinstance(owner, HeadLayerNorm) else None


@contextmanager
def _own_parts(module: nn.Module) -> Iterator[None]:
    """A context in which the sharded parameters of a module are ordinary tensors: what this rank has of them."""
    sharded = [
        (owner._parameters, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None and is_sharded(parameter)
    ]
    for parameters, name, parameter in sharded:
        parameters[name] = _own_part(name, parameter)
    try:
        yield
    finally:  # recomputation ends with an exception
        for parameters, name, parameter in sharded:
            parameters[name] = parameter


def _own_part(name: str, parameter: Any) -> Any:
    """What this rank has of a parameter. If it is the whole, then each rank has a summand of the gradient."""
    from torch.distributed.tensor import Partial

    if not parameter.placements[0].is_replicate():
        return parameter.to_local()
    whole = parameter.to_local(grad_placements=[Partial()])
    # The bias of a layer whose outputs are summed.
    return whole / parameter.device_mesh.size() if name == "bias" else whole


def _blocks(module: TrainingModule) -> Iterator[nn.Module]:
    """The blocks of all stacks."""
    for model in (module.model, module.reference):
        for stack in () if model is None else (model.encoder, model.decoder):
            yield from () if stack is None else stack.layers


def release(module: TrainingModule) -> None:
    """After forward passes without a backward pass: give up the weights that were gathered for it."""
    if module.is_sharded:
        cast(Any, module).reshard()


@contextmanager
def whole_weights(module: TrainingModule) -> Iterator[None]:
    """A context in which each rank holds all weights, and runs the model as often as it likes; nothing is trained.

    The beginning communicates, what follows does not.
    """
    if not module.is_sharded:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    blocks, unit = [part for part in module.model.modules() if isinstance(part, FSDPModule)], cast(Any, module)
    unit.set_reshard_after_forward(False)
    for part in (unit, *blocks):
        part.unshard()
    try:
        yield
    finally:
        for part in (unit, *blocks):
            part.reshard()
        for block in _blocks(module):
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
