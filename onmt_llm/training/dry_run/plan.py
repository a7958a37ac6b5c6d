"""`plan`: what a run would do and need, without allocating a weight (`-dry_run`).

Memory follows from the shapes (`memory.py`); what autograd saves in the blocks is counted on a small copy of the model
(`activations.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from onmt_llm.config.model import ModelConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.update_size import for_processes
from onmt_llm.nn.device import resolve_device
from onmt_llm.nn.lora.model import lora_modules
from onmt_llm.training.checkpointing.train_from import resolve_train_from
from onmt_llm.training.dry_run.estimate import RunEstimate, with_sharding
from onmt_llm.training.dry_run.memory import MIB, UNSHARDED, Memory, Sharding
from onmt_llm.training.dry_run.program import load_what_sharded_runs_load
from onmt_llm.training.dry_run.sampling import BatchSample, heartbeat, sample_batches
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.host_memory import resident_memory
from onmt_llm.training.run.startup_log import run_notes
from onmt_llm.training.setup.inputs import open_pipelines
from onmt_llm.training.setup.model import build_on_meta, count_parameters
from onmt_llm.training.setup.performance import check_device
from onmt_llm.training.setup.run_setup import check_parallelism, check_run, open_run_setup


@dataclass(frozen=True)
class Plan:
    """Size, memory and pace of a run.

    Attributes:
        model: Architecture of the model.
        parameters: Number of all parameters.
        trainable: Number of trainable parameters.
        lora_layers: Layers with an adapter.
        new_blocks: New blocks of an expansion.
        quant_layers: Quantised layers.
        memory: What a process needs for the model.
        program: Bytes of main memory beside that: Python, torch, tokenisers; 0 if the model is on a GPU.
        sampled: The largest of the first micro-batches, and how it was found.
        positions_per_step: Positions of one update, over all micro-batches and processes, padding included.
        notes: Further lines: what the run is initialised from, and what it writes.
        sharding: How the weights are sharded among processes.
    """

    model: ModelConfig
    parameters: int
    trainable: int
    lora_layers: int
    new_blocks: int
    quant_layers: int
    memory: Memory
    program: int
    sampled: BatchSample
    positions_per_step: int
    notes: list[str] = field(default_factory=list)
    sharding: Sharding = UNSHARDED

    @property
    def peak(self) -> int:
        """Peak bytes of a process, on the device of the model."""
        return self.memory.peak + self.program

    @property
    def _sharded(self) -> str:
        """What the processes share, in words."""
        shards, tensor = self.sharding.shards, self.sharding.tensor
        words = [f"{shards} shard weights, gradients and optimiser"] if shards > 1 else []
        words += [f"{tensor} compute each block together"] if tensor > 1 else []
        return f" ({', '.join(words)})" if words else ""

    @property
    def _gradients(self) -> list[str]:
        """What is left of the gradients when all processes have summed and sharded theirs."""
        if not self.sharding.is_on:
            return []
        return [f"Gradients of a process before the update: {self.memory.update['gradients'] / MIB:,.1f} MiB"]

    def report(self) -> str:
        """The plan as text."""
        parts = {**({"this program": self.program} if self.program else {}), **self.memory.parts}
        share = 100 * self.trainable / max(self.parameters, 1)
        batch, estimated = self.sampled.batch, ""
        if not self.sampled.is_whole:
            estimated = f" (estimated from the first {self.sampled.examples:,} examples)"
        lines = [
            f"Model: {self.model.summary}",
            f"Parameters: {self.parameters:,}; trainable {self.trainable:,} ({share:.2f}%)",
            f"Layers with LoRA: {self.lora_layers}; quantised: {self.quant_layers}; new blocks: {self.new_blocks}",
            f"Estimated peak memory per process{self._sharded}:",
            *(f"  {part:<18}{size / MIB:>10,.1f} MiB" for part, size in parts.items()),
            f"  {'total':<18}{self.peak / MIB:>10,.1f} MiB",
            *self._gradients,
            f"Micro-batch: up to {batch.examples} examples, {batch.positions:,} tokens with padding{estimated}",
            f"Tokens per step: {self.positions_per_step:,} with padding",
            *self.notes,
        ]
        return "\n".join(lines)


def plan(config: TrainConfig) -> Plan:
    """What `train` would do and need: everything is validated, no weight is allocated.

    Raises:
        OnmtLlmError: As `train`.
    """
    config = for_processes(resolve_train_from(config), max(config.devices.world_size, 1))
    setup = open_run_setup(config)
    start, layers, run, devices = setup.start, setup.layers, setup.config.run, setup.config.devices
    check_run(setup)
    model, quantised = build_on_meta(config, start, layers)
    device_type = resolve_device(devices.device).type if devices.device == "auto" else devices.device
    check_device(config.performance, device_type)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    with heartbeat("Reading the corpora"):
        open_pipelines(config, start.codec, seed=0, world=world)
        sampled = sample_batches(config, start.codec, world)
    # Everything but the weights is in memory by now. The model copies that are counted below must not be part of it.
    program = resident_memory() + sampled.rest if device_type == "cpu" else 0
    if devices.shard == "auto":
        estimate = RunEstimate(setup, model, set(quantised), sampled.batch, device_type)
        setup = with_sharding(setup, estimate.choice(program, processes=max(devices.world_size, 1)))
        check_parallelism(setup, devices.world_size)
    sharding = Sharding.of(setup.config.devices)
    estimate = RunEstimate(setup, model, set(quantised), sampled.batch, device_type)
    if sharding.is_on and device_type == "cpu":
        load_what_sharded_runs_load(estimate.activations(sharding), setup.config.optimizer)
        program = max(program, resident_memory() + sampled.rest)
    parameters, trainable = count_parameters(model)
    updates = run.accum_count[0] * max(devices.world_size, 1) // devices.tensor_parallel
    return Plan(
        model=start.model,
        parameters=parameters,
        trainable=trainable,
        lora_layers=len(lora_modules(model)),
        new_blocks=len(layers.new_blocks),
        quant_layers=len(quantised),
        memory=estimate.memory(sharding),
        program=program,
        sampled=sampled,
        positions_per_step=sampled.batch.positions * updates,
        notes=run_notes(config, start),
        sharding=sharding,
    )
