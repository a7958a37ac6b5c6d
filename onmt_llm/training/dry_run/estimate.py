"""Estimate the memory of a run, and choose by it whether its weights are sharded (`shard: auto`)."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from onmt_llm.log import logger
from onmt_llm.nn.device import memory_of
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dry_run.activations import ActivationEstimate, BatchShape
from onmt_llm.training.dry_run.memory import MIB, Memory, Sharding, estimate_memory
from onmt_llm.training.dry_run.sampling import sample_batches
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.host_memory import resident_memory
from onmt_llm.training.setup.model import build_on_meta, run_precision
from onmt_llm.training.setup.run_setup import RunSetup


@dataclass(frozen=True)
class RunEstimate:
    """What the memory of a run is estimated from.

    Attributes:
        setup: What the run is set up from.
        model: The model on the meta device, with its adapters or twins, frozen as in training.
        quantised: Dotted paths of the layers that will be quantised.
        batch: Shape of a large micro-batch.
        device_type: Type of the device that the model will run on.
    """

    setup: RunSetup
    model: Transformer
    quantised: Collection[str]
    batch: BatchShape
    device_type: str

    def memory(self, sharding: Sharding) -> Memory:
        """The memory of one process, if the weights are sharded like this."""
        config = self.setup.config
        return estimate_memory(
            self.model,
            self.activations(sharding),
            quantised=self.quantised,
            optim=config.optimizer.optim,
            ema=config.optimizer.average_decay > 0,
            chunk_tokens=config.performance.loss_chunk_tokens,
            device_type=self.device_type,
            sharding=sharding,
        )

    def activations(self, sharding: Sharding) -> ActivationEstimate:
        """What autograd saves in a process, if the weights are sharded like this."""
        config, layers = self.setup.config, self.setup.layers
        precision = run_precision(config.performance, layers, loss_scale=0.0, device=torch.device("meta"))
        return ActivationEstimate(sharding.part(self.setup.start.model), config, layers, precision, self.batch)

    def choice(self, program: int, *, processes: int) -> str:
        """The value of `shard` that `auto` means; logs why.

        Args:
            program: Bytes of the process beside the model, in the memory of the device.
            processes: Number of processes of the run.
        """
        if processes == 1:
            return "off"
        device = torch.device(self.device_type, *([] if self.device_type == "cpu" else [torch.cuda.current_device()]))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        room = memory_of(device, processes=local)
        needed = program + self.memory(Sharding(1, self.setup.config.devices.tensor_parallel)).peak
        choice = "full" if room is not None and needed > room else "off"
        logger.info(
            "shard: auto is %s: a whole copy in each process takes about %s MiB, and there are %s MiB for each.",
            *(choice, f"{needed / MIB:,.0f}", "unknown" if room is None else f"{room / MIB:,.0f}"),
        )
        return choice


def with_sharding(setup: RunSetup, shard: str) -> RunSetup:
    """The same run with another value of `shard`."""
    devices = setup.config.devices.model_copy(update={"shard": shard})
    return replace(setup, config=setup.config.model_copy(update={"devices": devices}))


def resolve_sharding(setup: RunSetup, world: World) -> RunSetup:
    """The run with what `shard: auto` means, which the main process decides."""
    if setup.config.devices.shard != "auto":
        return setup
    choice = ""
    if world.is_main:
        model, quantised = build_on_meta(setup.config, setup.start, setup.layers)
        alone = World(rank=0, size=1, device=torch.device("cpu"))
        sampled = sample_batches(setup.config, setup.start.codec, alone)
        program = resident_memory() + sampled.rest if world.device.type == "cpu" else 0
        estimate = RunEstimate(setup, model, set(quantised), sampled.batch, world.device.type)
        choice = estimate.choice(program, processes=world.size)
    return with_sharding(setup, world.gather({"shard": choice})[0]["shard"])
