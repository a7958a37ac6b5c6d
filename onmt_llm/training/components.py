"""`TrainingComponents`: model, optimiser, schedule and everything else that the training loop works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.optim import Optimizer

from onmt_llm.config.learning import OptimConfig, PerformanceConfig, RegularizationConfig
from onmt_llm.config.train import RunConfig
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.objective import LIKELIHOOD, Objective
from onmt_llm.training.metrics.loss_spikes import SpikeDetector
from onmt_llm.training.metrics.profiler import Profiler
from onmt_llm.training.optim.ema import EMA
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.optim.schedule import Schedule
from onmt_llm.training.parallel import TrainingModule
from onmt_llm.training.process.dist import ALONE, World
from onmt_llm.training.process.pulse import Pulse
from onmt_llm.training.validation.early_stopping import EarlyStopping


@dataclass
class TrainingComponents:
    """What the loop works with; built by `run/build.py`.

    Attributes:
        module: The model as the loop calls it. Its trainable parameters are those with `requires_grad`.
        optimizer: The optimiser of these parameters.
        schedule: Learning rate of each step.
        precision: Number formats.
        world: This process among the others, and its device.
        run: Length, gradient accumulation, validation and saving.
        optim: Gradient clipping.
        regularization: Dropout.
        performance: Precision, and whether updates happen in the backward pass.
        objective: What is minimised.
        early_stopping: Decides when validations no longer improve.
        ema: The running average of the weights; None = none is maintained.
        spike_detector: Detects loss spikes.
        profiler: Profiles some of the updates.
        pulse: Tells the other processes that this one makes progress.
        save_best: Save a checkpoint after the best validation so far.
        corpora: Number of the corpora whose likelihoods are reported separately; 0 = none.
    """

    module: TrainingModule
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision
    world: World
    run: RunConfig
    optim: OptimConfig
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    objective: Objective = LIKELIHOOD
    early_stopping: EarlyStopping = field(default_factory=lambda: EarlyStopping(0))
    ema: EMA | None = None
    spike_detector: SpikeDetector = field(default_factory=SpikeDetector)
    profiler: Profiler = field(default_factory=Profiler)
    pulse: Pulse = field(default_factory=lambda: Pulse(ALONE, limit=0))
    save_best: bool = False
    corpora: int = 0

    @property
    def model(self) -> Transformer:
        """The model alone."""
        return self.module.model

    @property
    def optimizer_name(self) -> str:
        """Name of the optimiser whose state a checkpoint holds."""
        return f"{self.optim.optim}{' over bf16' if self.performance.pure_bf16 else ''}"
