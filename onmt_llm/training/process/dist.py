"""Data-parallel training: ranks, device, and the few collective operations. One process runs the same code as many.

Several processes are started by torchrun, which describes them in the environment. Every rank reads its own part of the
data; gradients are summed, so the update is that of one large batch. Every rank holds the whole model, unless
`parallel.py` shards it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onmt_llm.errors import ConfigError, OnmtLlmError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.device import resolve_device
from onmt_llm.training.process.rendezvous import agree, open_store, outlives_attempts
from onmt_llm.training.process.shards import is_sharded

# Gradients are reduced in flat buckets of about this size: few messages, little extra memory.
BUCKET_ELEMENTS = 1 << 24
# The other ranks may have to wait for rank 0 to validate or save.
TIMEOUT = timedelta(hours=2)

_LOST_PROCESS = re.compile("[Cc]onnection (closed|reset) by|Broken pipe|remote process exited|communicator was aborted")
"""The messages of gloo and NCCL for a process that has ended."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        device: Device of this process.
        made_group: The process group is our own, and is left at the end; otherwise it was there before, as in Ray.
        group: The process group; None = torch's default. Work in a thread needs another one than the training loop.
        attempt: Prefix of what the processes write into the store of torchrun, which lives longer than they.
        tensor_parallel: Number of neighbouring ranks that compute each block together, and so read the same data.
        data_group: The ranks of all such groups with this one's place in theirs; None = all ranks.
    """

    rank: int
    size: int
    device: torch.device
    made_group: bool = False
    group: Any = None
    attempt: str = ""
    tensor_parallel: int = 1
    data_group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Number of ranks, or groups of ranks, that read data of their own."""
        return self.size // self.tensor_parallel

    @property
    def data_rank(self) -> int:
        """Number of this rank, or of its group, among those that read data of their own."""
        return self.rank // self.tensor_parallel

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all data, in place: ranks that read the same data count once."""
        if self.data_size > 1:
            dist.all_reduce(tensor, group=self.data_group or self.group)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return self.any_each([flag])[0]

    def any_each(self, flags: Sequence[bool]) -> list[bool]:
        """For each of `flags`, whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(found, group=self.group)
        return (found > 0).tolist()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of `parameters` over all ranks; a missing one counts as zero.

        Those of sharded parameters are summed already, by the backward pass.
        """
        if self.size == 1:
            return
        for bucket in _buckets([parameter for parameter in parameters if not is_sharded(parameter)]):
            flat = torch.cat([_gradient(p).flatten() for p in bucket])
            dist.all_reduce(flat, group=self.group)
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    def gather(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The JSON-able `record` of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [record]
        data = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([data.numel()], device=self.device), group=self.group)
        room = max(int(size) for size in sizes)
        rows = [torch.zeros(room, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
        dist.all_gather(rows, torch.nn.functional.pad(data, (0, room - data.numel())), group=self.group)
        return [json.loads(bytes(row[: int(size)].tolist())) for row, size in zip(rows, sizes, strict=True)]

    def gather_data(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """As `gather`, but one record for each rank, or group of ranks, that reads data of its own."""
        return self.gather(record)[:: self.tensor_parallel]

    def share_parameters(self, module: nn.Module) -> None:
        """Broadcast rank 0's trainable parameters, which may be randomly initialised."""
        if self.size > 1:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    dist.broadcast(parameter.data, src=0, group=self.group)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def with_cpu_group(self) -> World:
        """The same processes with a group of their own on the CPU, for work in a thread; communicates."""
        group = dist.new_group(backend="gloo", timeout=TIMEOUT) if self.size > 1 else None
        return replace(self, device=torch.device("cpu"), group=group, made_group=False)

    def close(self) -> None:
        """Leave the process group, if it is our own."""
        if self.made_group:
            dist.destroy_process_group()


ALONE = World(rank=0, size=1, device=torch.device("cpu"))
"""The only process, on a CPU."""


def open_world(device: str = "auto", world_size: int = 1, tensor_parallel: int = 1) -> World:
    """Determine rank and device, and join the other processes.

    Args:
        device: "auto" (CUDA if it is available), "cpu" or "cuda".
        world_size: Number of processes by the options; 0 = CPU.
        tensor_parallel: Number of neighbouring processes that compute each block together.

    Raises:
        UnsupportedError: torchrun did not start the processes that the options need, or CUDA is not available.
        ConfigError: torchrun started another number of processes than `world_size`, or one that `tensor_parallel` does
            not divide.
        OnmtLlmError: Not all processes can be reached.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and started == 1:
        raise UnsupportedError(
            f"world_size {world_size} needs {world_size} processes, but this is the only one.",
            hint=f"start them with: torchrun --nproc_per_node {world_size} -m onmt_llm.cli.train -config FILE.yaml",
        )
    if world_size > 1 and started != world_size:
        raise ConfigError(
            f"world_size must be the number of processes that torchrun started, {started}, but is {world_size}."
        )
    if started % tensor_parallel:
        raise ConfigError(
            f"tensor_parallel must divide the number of processes, {started}, but is {tensor_parallel}.",
            hint="start them with torchrun --nproc_per_node, and set world_size",
        )
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    resolved = resolve_device("cpu" if world_size == 0 else device, local_rank)
    if started > 1 and resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    world = World(rank=rank, size=started, device=resolved)
    if started > 1 and not dist.is_initialized():
        world = _join(world)
    logger.info("Device: %s, %d CPU threads, process %d of %d.", resolved, torch.get_num_threads(), rank + 1, started)
    if tensor_parallel == 1:
        return world
    world = replace(world, tensor_parallel=tensor_parallel)
    return replace(world, data_group=_data_group(world))


def _data_group(world: World) -> Any:
    """The process group of the ranks with this one's place in their groups; all ranks make all of them."""
    places = [list(range(place, world.size, world.tensor_parallel)) for place in range(world.tensor_parallel)]
    groups = [dist.new_group(ranks) for ranks in places]
    return groups[world.rank % world.tensor_parallel]


def _join(world: World) -> World:
    """Join the other processes.

    Raises:
        OnmtLlmError: Not all of them can be reached.
    """
    attempt, group = "", {}
    try:
        if outlives_attempts():
            attempt = agree(open_store(), world.rank, world.size)
            group = {"store": open_store(attempt, timeout=TIMEOUT), "rank": world.rank, "world_size": world.size}
        dist.init_process_group("nccl" if world.device.type == "cuda" else "gloo", timeout=TIMEOUT, **group)
    except RuntimeError as error:
        raise OnmtLlmError(
            f"All {world.size} processes must reach each other, but process {world.rank} cannot: "
            f"{str(error).partition(chr(10))[0]}.",
            hint="the message of the process that ended first says why",
        ) from error
    return replace(world, made_group=True, attempt=attempt)


def is_lost_process(error: BaseException | None) -> bool:
    """Whether an error says that another process of the run has ended."""
    return isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error)) is not None


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Consecutive parameters of one type, about `BUCKET_ELEMENTS` each."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > BUCKET_ELEMENTS
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
