"""Build everything that the training loop works with: objective, model, optimiser, schedule and so on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onmt_llm.data.pipeline import Pipeline
from onmt_llm.training.checkpointing.resume import resumed_settings
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.metrics.build import per_corpus_names
from onmt_llm.training.metrics.loss_spikes import SpikeDetector
from onmt_llm.training.metrics.profiler import Profiler
from onmt_llm.training.optim.build import build_optimizer
from onmt_llm.training.optim.ema import EMA
from onmt_llm.training.optim.schedule import build_schedule
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.pulse import Pulse
from onmt_llm.training.process.rng import set_seed
from onmt_llm.training.setup.inputs import open_objective
from onmt_llm.training.setup.model import run_precision
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.setup.training_module import build_training_module, reference_loader, reference_of
from onmt_llm.training.validation.early_stopping import EarlyStopping
from onmt_llm.training.validation.generation import GenerationValidator
from onmt_llm.training.validation.validate import Validator


def build_components(setup: RunSetup, world: World, *, seed: int) -> TrainingComponents:
    """Build what the loop works with; from here on the random generators of the ranks differ.

    Args:
        setup: What the run is set up from.
        world: This process among the others.
        seed: The run's seed; the random generators have it already.
    """
    config, start, layers = setup.config, setup.start, setup.layers
    run, performance = config.run, config.performance
    optim = resumed_settings(config.optimizer, setup.saved, reset=config.start.reset_optim)
    load = reference_loader(setup, world)
    objective = open_objective(config, optim, start, layers, world.device, load_reference=load)
    precision = run_precision(performance, layers, loss_scale=optim.loss_scale, device=world.device)
    module = build_training_module(setup, precision, world, reference_of(objective.preference))
    model = module.model
    # Each rank needs its own dropout, but those that compute a block together have the same.
    set_seed(seed + world.data_rank)
    validation, safety, watching = config.validation, config.safety, config.watching
    return TrainingComponents(
        module=module,
        optimizer=build_optimizer(model, optim, pure_bf16=performance.pure_bf16),
        schedule=build_schedule(optim, train_steps=run.train_steps, hidden_size=start.model.hidden_size),
        precision=precision,
        world=world,
        run=run,
        optim=optim,
        regularization=config.regularization,
        performance=performance,
        objective=objective,
        early_stopping=EarlyStopping(validation.early_stopping, validation.early_stopping_criteria),
        ema=EMA(model, decay=optim.average_decay, every=optim.average_every) if optim.average_decay else None,
        spike_detector=SpikeDetector(safety.spike_action, threshold=safety.spike_threshold, window=safety.spike_window),
        profiler=Profiler(
            watching.profile_steps, Path(f"{run.save_model}_profile"), rank=world.rank, flops=watching.profile_flops
        ),
        pulse=Pulse(world, limit=config.devices.collective_timeout),
        save_best=safety.save_best,
        corpora=len(per_corpus_names(config.corpora)),
    )


def build_validator(
    components: TrainingComponents, corpora: Mapping[str, Pipeline], generation: GenerationValidator | None
) -> Validator | None:
    """The validator of a run; None without a validation corpus."""
    if not corpora:
        return None
    return Validator(
        module=components.module,
        corpora=corpora,
        precision=components.precision,
        world=components.world,
        ema=components.ema,
        generation=generation,
        objective=components.objective.for_validation,
    )
