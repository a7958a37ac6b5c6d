"""The model of a run as the loop calls it: whole in each process, or sharded among the processes."""

from __future__ import annotations

from functools import partial

from onmt_llm.checkpoint.load import load_model
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.objective import BatchLoss
from onmt_llm.training.losses.preference import LoadModel, PreferenceLoss
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.parallel import TrainingModule, shard
from onmt_llm.training.process.dist import World
from onmt_llm.training.setup.model import build_training_model
from onmt_llm.training.setup.performance import compile_blocks
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.setup.sharded import build_sharded, needs_whole_weights, open_reference


def is_sharded_run(setup: RunSetup, world: World) -> bool:
    """Whether each process holds a part of the weights."""
    return world.size > 1 and (setup.config.devices.shard == "full" or world.tensor_parallel > 1)


def reference_loader(setup: RunSetup, world: World) -> LoadModel:
    """How the reference model of a preference loss is loaded."""
    whole = needs_whole_weights(setup.config, setup.start, setup.layers)
    return open_reference if is_sharded_run(setup, world) and not whole else load_model


def reference_of(loss: BatchLoss | None) -> Transformer | None:
    """The reference model of a preference loss, if it has one."""
    return loss.reference if isinstance(loss, PreferenceLoss) else None


def build_training_module(
    setup: RunSetup, precision: Precision, world: World, reference: Transformer | None
) -> TrainingModule:
    """The model ready for training.

    Args:
        setup: What the run is set up from.
        precision: Number formats.
        world: This process among the others.
        reference: The reference model of a preference loss, by `reference_loader`.
    """
    if not is_sharded_run(setup, world):
        return TrainingModule(_build_whole(setup, precision, world))
    devices, whole = setup.config.devices, needs_whole_weights(setup.config, setup.start, setup.layers)
    shard_size = devices.shard_size if devices.shard == "full" else 1
    shard_module = partial(shard, world=world, shard_size=shard_size, autocast=precision.autocast)
    if whole:
        logger.info("Each process loads the whole model before it is sharded, because of %s.", whole)
        module = TrainingModule(_build_whole(setup, precision, world), reference)
        shard_module(module)
        return module
    return build_sharded(
        *(setup.config, setup.start, setup.layers, precision),
        device=world.device,
        parts=(shard_size or world.data_size) * world.tensor_parallel,
        shard=shard_module,
        reference=reference,
    )


def _build_whole(setup: RunSetup, precision: Precision, world: World) -> Transformer:
    model = build_training_model(setup.config, setup.start, setup.layers, precision, world)
    if setup.config.performance.compile_blocks:
        compile_blocks(model, world.device)
    return model
