"""The model of a run as the loop calls it: whole in each process, or divided among the processes."""

from __future__ import annotations

from functools import partial

from onmt_llm.checkpoint.load import load_model
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.objective import BatchLoss
from onmt_llm.training.losses.preference import LoadModel, PreferenceLoss
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.parallel import Trainee, shard
from onmt_llm.training.process.dist import World
from onmt_llm.training.setup.divided import build_divided, needs_whole_weights, open_reference
from onmt_llm.training.setup.model import build_training_model
from onmt_llm.training.setup.performance import compile_blocks
from onmt_llm.training.setup.run_setup import RunSetup


def is_divided(setup: RunSetup, world: World) -> bool:
    """Whether each process holds a part of the weights."""
    return world.size > 1 and (setup.config.devices.shard == "full" or world.tensor_parallel > 1)


def reference_loader(setup: RunSetup, world: World) -> LoadModel:
    """How the reference model of a preference loss is loaded."""
    whole = needs_whole_weights(setup.config, setup.start, setup.layers)
    return open_reference if is_divided(setup, world) and not whole else load_model


def reference_of(loss: BatchLoss | None) -> Transformer | None:
    """The reference model of a preference loss, if it has one."""
    return loss.reference if isinstance(loss, PreferenceLoss) else None


def build_trainee(setup: RunSetup, precision: Precision, world: World, reference: Transformer | None) -> Trainee:
    """The model ready for training.

    Args:
        setup: What the run is set up from.
        precision: Number formats.
        world: This process among the others.
        reference: The reference model of a preference loss, by `reference_loader`.
    """
    if not is_divided(setup, world):
        return Trainee(_build_whole(setup, precision, world))
    devices, whole = setup.config.devices, needs_whole_weights(setup.config, setup.start, setup.layers)
    shard_size = devices.shard_size if devices.shard == "full" else 1
    divide = partial(shard, world=world, shard_size=shard_size, autocast=precision.autocast)
    if whole:
        logger.info("Each process loads the whole model before it is divided, because of %s.", whole)
        trainee = Trainee(_build_whole(setup, precision, world), reference)
        divide(trainee)
        return trainee
    return build_divided(
        *(setup.config, setup.start, setup.layers, precision),
        device=world.device,
        parts=(shard_size or world.data_size) * world.tensor_parallel,
        divide=divide,
        reference=reference,
    )


def _build_whole(setup: RunSetup, precision: Precision, world: World) -> Transformer:
    model = build_training_model(setup.config, setup.start, setup.layers, precision, world)
    if setup.config.performance.compile_blocks:
        compile_blocks(model, world.device)
    return model
