"""Learning-rate schedules as closed forms of the step.

A schedule has no state: update `step` (the first is 1) has the rate `Schedule.rate(step)`, whether or not the run was
resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onmt_llm.config.learning import TO_THE_END, OptimConfig
from onmt_llm.errors import ConfigError
from onmt_llm.log import log_once
from onmt_llm.registry import Registry

# The step from which OpenNMT-py's noamwd decays by default.
NOAMWD_START = 50_000


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps of a run.

    Attributes:
        method: A name in `SCHEDULES`.
        learning_rate: Peak rate, or the factor of `noam`, `noamwd` and `rsqrt`.
        warmup_steps: Updates over which the rate rises (`rsqrt`: stays constant).
        train_steps: Last update, where `cosine` and `linear` end.
        hidden_size: Width of the model, for `noam` and `noamwd`.
        min_learning_rate: Final rate of `cosine` and `linear`.
        start_decay_steps: First update of the step-wise decay; None = no decay.
        decay_steps: Updates between two decays.
        decay: Factor of one decay.
    """

    method: str
    learning_rate: float
    warmup_steps: int = 0
    train_steps: int = 1
    hidden_size: int = 1
    min_learning_rate: float = 0.0
    start_decay_steps: int | None = None
    decay_steps: int = 10_000
    decay: float = 0.5

    def rate(self, step: int) -> float:
        """Learning rate of update `step`, counted from 1."""
        return SCHEDULES.get(self.method)(self, max(step, 1))


SCHEDULES: Registry[Callable[[Schedule, int], float]] = Registry("decay_method")


def build_schedule(optimizer: OptimConfig, *, train_steps: int, hidden_size: int) -> Schedule:
    """The schedule of the options.

    Raises:
        ConfigError: The learning rate would rise to `min_learning_rate`.
    """
    least, peak = optimizer.min_learning_rate, optimizer.learning_rate
    if optimizer.decay_method in TO_THE_END and least > peak:
        raise ConfigError(f"min_learning_rate must be at most learning_rate, {peak:g}, but is {least:g}.")
    start = optimizer.start_decay_steps
    if optimizer.decay_method == "noamwd" and start is None:
        start = NOAMWD_START
        log_once(f"decay_method noamwd without start_decay_steps decays from step {NOAMWD_START} on.")
    return Schedule(
        method=optimizer.decay_method,
        learning_rate=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        train_steps=train_steps,
        hidden_size=hidden_size,
        min_learning_rate=optimizer.min_learning_rate,
        start_decay_steps=start,
        decay_steps=optimizer.decay_steps,
        decay=optimizer.learning_rate_decay,
    )


def _warmup(schedule: Schedule, step: int) -> float:
    return min(1.0, step / schedule.warmup_steps) if schedule.warmup_steps else 1.0


def _stepwise(schedule: Schedule, step: int) -> float:
    if schedule.start_decay_steps is None or step < schedule.start_decay_steps:
        return 1.0
    return schedule.decay ** ((step - schedule.start_decay_steps) // schedule.decay_steps + 1)


def _progress(schedule: Schedule, step: int) -> float:
    """Progress from the end of the warm-up (0) to `train_steps` (1)."""
    span = max(1, schedule.train_steps - schedule.warmup_steps)
    return min(1.0, max(0.0, (step - schedule.warmup_steps) / span))


@SCHEDULES.register("none")
def constant(schedule: Schedule, step: int) -> float:
    """Constant rate after a linear warm-up, with an optional step-wise decay."""
    return schedule.learning_rate * _warmup(schedule, step) * _stepwise(schedule, step)


@SCHEDULES.register("noam")
def noam(schedule: Schedule, step: int) -> float:
    """rate x hidden_size^-0.5 x min(step^-0.5, step x warmup^-1.5) (Vaswani et al. 2017, section 5.3)."""
    rise = step * schedule.warmup_steps**-1.5 if schedule.warmup_steps else math.inf
    return schedule.learning_rate * schedule.hidden_size**-0.5 * min(step**-0.5, rise)


@SCHEDULES.register("noamwd")
def noam_with_decay(schedule: Schedule, step: int) -> float:
    """`noam` times the step-wise decay."""
    return noam(schedule, step) * _stepwise(schedule, step)


@SCHEDULES.register("rsqrt")
def inverse_square_root(schedule: Schedule, step: int) -> float:
    """rate / sqrt(max(step, warmup)): constant during the warm-up, as in OpenNMT-py."""
    return schedule.learning_rate / math.sqrt(max(step, schedule.warmup_steps))


@SCHEDULES.register("cosine")
def cosine(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then half a cosine down to `min_learning_rate` at `train_steps`."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * _warmup(schedule, step)
    share = 0.5 * (1.0 + math.cos(math.pi * _progress(schedule, step)))
    return schedule.min_learning_rate + (schedule.learning_rate - schedule.min_learning_rate) * share


@SCHEDULES.register("linear")
def linear(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then linear decay to `min_learning_rate` at `train_steps`."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * _warmup(schedule, step)
    share = 1.0 - _progress(schedule, step)
    return schedule.min_learning_rate + (schedule.learning_rate - schedule.min_learning_rate) * share
