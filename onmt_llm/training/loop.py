"""The training loop, to be read from top to bottom.

One update: forward and backward over the micro-batches of the accumulation window, each with the *sum* of its token
losses; then the gradients, summed over ranks, are divided once by the number of trained tokens in the whole window on
all ranks. So the update does not depend on how the examples are laid out in micro-batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor
from torch.optim import Optimizer

from onmt_llm.config.training.optimizer import OptimConfig
from onmt_llm.config.training.performance import PerformanceConfig
from onmt_llm.config.training.regularization import RegularizationConfig
from onmt_llm.config.training.run import RunConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer, set_dropout
from onmt_llm.training.dist import World
from onmt_llm.training.loss_spikes import Watchdog
from onmt_llm.training.losses.cross_entropy import batch_loss
from onmt_llm.training.losses.objective import LIKELIHOOD, Objective
from onmt_llm.training.metrics.profiler import Profiler
from onmt_llm.training.metrics.reporter import Judgement, Reporter, Stopwatch, Totals
from onmt_llm.training.optim.build import scale_and_clip, set_learning_rate, trainable
from onmt_llm.training.optim.ema import Average
from onmt_llm.training.optim.in_backward import backward_and_step
from onmt_llm.training.optim.precision import Precision, not_finite
from onmt_llm.training.optim.schedule import Schedule
from onmt_llm.training.signals import Requests
from onmt_llm.training.state import Progress
from onmt_llm.training.validation.early_stopping import EarlyStopping

T = TypeVar("T")


@dataclass
class Job:
    """What a run works with; built by `job.py`, used by the loop.

    Attributes:
        model: Its trainable parameters are those with `requires_grad`.
        optimizer: Over these parameters.
        schedule: Learning rate of each step.
        precision: Number formats.
        world: This process among others, and its device.
        run: Length, gradient accumulation, validation and saving.
        optim: Gradient clipping.
        regularization: Dropout.
        performance: Precision, and whether updates happen in the backward pass.
        objective: What is minimised.
        stopping: When validations no longer get better.
        average: The running average of the weights, where one is kept.
        watchdog: Looks out for leaps of the loss.
        profiler: Looks into some of the updates.
        save_best: Save after a validation that is the best so far.
        corpora: Number of the corpora whose likelihoods are told apart; 0 = none.
    """

    model: Transformer
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision
    world: World
    run: RunConfig
    optim: OptimConfig
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    objective: Objective = LIKELIHOOD
    stopping: EarlyStopping = field(default_factory=lambda: EarlyStopping(0))
    average: Average | None = None
    watchdog: Watchdog = field(default_factory=Watchdog)
    profiler: Profiler = field(default_factory=Profiler)
    save_best: bool = False
    corpora: int = 0

    @property
    def optimizer_name(self) -> str:
        """Whose state it is that a checkpoint holds."""
        return f"{self.optim.optim}{' over bf16' if self.performance.pure_bf16 else ''}"


def train_loop(
    job: Job,
    batches: Iterable[Batch],
    progress: Progress,
    *,
    report: Reporter,
    save: Callable[[Progress], None],
    validate: Callable[[int], Judgement] | None = None,
    requests: Requests | None = None,
) -> str:
    """Train from `progress.step` to `run.train_steps`.

    Args:
        job: Model, optimiser and settings.
        batches: This rank's micro-batches. Where they end, training ends once they have ended on all ranks.
        progress: Where to begin; kept up to date.
        report: Takes the figures of every update.
        save: Writes a checkpoint.
        validate: Judges the model after a step, on all ranks alike; None = no validation.
        requests: What is asked from outside; None = by signals alone.

    Returns:
        "finished", "stopped early" (no better validation), "interrupted" (by a signal), "out of time", or "leapt" (the
        loss did, and the watchdog wants to go back).

    Raises:
        DataError: There is no batch at all.
        OnmtLlmError: Loss or gradients are no longer finite.
    """
    run, world, parameters = job.run, job.world, trainable(job.model)
    stream, begin = Stopwatch(batches), progress.step
    job.precision.begin(progress)
    job.model.train()
    with requests or Requests() as outside, job.profiler:
        # An interrupted run saves at once: the validation that was due then is made up for.
        early = progress.step > progress.validated and _is_due(run.valid_steps, progress.step)
        early = early and validate is not None and _validate(job, validate, report, progress)
        while progress.step < run.train_steps and not early:
            step = progress.step + 1
            rate = job.schedule.rate(step)
            set_learning_rate(job.optimizer, rate)
            set_dropout(job.model, *dropout_at(job.regularization, step))
            job.profiler.begin(step)

            totals, held = _accumulate(job, stream, step, progress.loss_scale)
            if not totals.batches:
                _used_up(job, progress, begun_at=begin, report=report, save=save, validate=validate)
                return "finished"
            world.sum_gradients(parameters)
            grad_norm = _update(job, progress, totals, held, step)
            if grad_norm is None:
                return "leapt"
            progress.step = step
            if job.average is not None:
                job.average.update(step)
            job.profiler.end(step)
            report.update(step, totals, rate=rate, grad_norm=grad_norm, waited=stream.lap())

            asked = outside.poll(world)
            last = step == run.train_steps
            if validate is not None and (last or (not asked.stop and _is_due(run.valid_steps, step))):
                early = _validate(job, validate, report, progress)
            best = job.save_best and progress.best_step == step
            if _is_due(run.save_checkpoint_steps, step) or last or early or best or asked.save or asked.stop:
                _save(save, progress, report)
            if asked.stop and not last:
                why = outside.name if asked.stop == "interrupted" else "max_time"
                logger.warning("Stopped by %s after step %d.", why, step)
                return asked.stop
    if early:
        patience, better = job.stopping.patience, " and ".join(job.stopping.criteria)
        logger.info("Stopped at step %d: %d validations without better %s.", progress.step, patience, better)
        return "stopped early"
    return "finished"


def _is_due(every: int, step: int) -> bool:
    return step > 0 and step % every == 0


def _accumulate(job: Job, stream: Iterator[Batch], step: int, scale: float) -> tuple[Totals, Tensor | None]:
    """Forward and backward over the window of `step`; gradients of the summed loss stay in the parameters.

    A rank whose batches have ended adds nothing, and goes on for as long as others have some.

    Returns:
        The figures of the window, and with `optimizer_in_backward` the loss whose backward pass is still to be done.
    """
    device = job.world.device
    row, held = Totals.empty_row(device, job.corpora), None
    for _ in range(at_step(job.run.accum_count, job.run.accum_steps, step)):
        batch = next(stream, None)
        if batch is None:
            break
        batch = batch.to(device)
        with job.precision.compute(device):
            loss = batch_loss(job.model, batch, objective=job.objective, scale=scale, corpora=job.corpora)
        if job.performance.optimizer_in_backward:
            held = loss.scaled
        else:
            loss.scaled.backward()
        row += Totals.row(loss, batch)
    return Totals.from_row(job.world.sum(row)), held


def _update(job: Job, progress: Progress, totals: Totals, held: Tensor | None, step: int) -> float | None:
    """One step of the optimiser with the window's gradients, or with those of the backward pass of `held`; returns
    their norm, or None if the run should go back."""
    if totals.tokens and job.watchdog(progress, totals.mean_loss, step):
        return None
    if not math.isfinite(totals.loss):
        raise not_finite("loss", totals.loss, step)
    if totals.tokens == 0:
        logger.warning("Step %d: no token of its %d examples is trained; nothing is updated.", step, totals.examples)
        job.optimizer.zero_grad(set_to_none=True)
        return 0.0
    count = totals.judged or (totals.tokens if job.run.normalization == "tokens" else totals.examples)
    factor = 1.0 / (count * progress.loss_scale)
    if held is None:
        grad_norm = scale_and_clip(trainable(job.model), factor=factor, max_norm=job.optim.max_grad_norm)
    else:
        grad_norm = backward_and_step(held, job.optimizer, factor=factor)
    finite = math.isfinite(grad_norm)
    if not finite and not job.precision.scaled and job.watchdog.rolls_back:
        job.watchdog.back(progress, f"the gradient is {grad_norm}", step)
        return None
    if job.precision.accept(progress, step=step, finite=finite) and held is None:
        job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    return grad_norm


def _validate(job: Job, validate: Callable[[int], Judgement], report: Reporter, progress: Progress) -> bool:
    """Validate, keep the scores; True when patience is at its end."""
    with report.pause():
        judgement = validate(progress.step)
    progress.validated = progress.step
    progress.best_ppl = min(progress.best_ppl, judgement.totals.ppl)
    early = job.stopping(progress, judgement.figures)
    report.validation(progress.step, judgement, patience=job.stopping.left(progress))
    return early


def _save(save: Callable[[Progress], None], progress: Progress, report: Reporter) -> None:
    progress.rollbacks = 0
    progress.report = report.state()
    with report.pause():
        save(progress)


def _used_up(
    job: Job,
    progress: Progress,
    *,
    begun_at: int,
    report: Reporter,
    save: Callable[[Progress], None],
    validate: Callable[[int], Judgement] | None,
) -> None:
    """The corpora are used up on all ranks: judge and save, if that is not done yet.

    Raises:
        DataError: They gave nothing.
    """
    step = progress.step
    if step == 0:
        raise DataError("The training corpora must give at least one example, but gave none.")
    logger.info("All epochs are done after step %d of train_steps %d.", step, job.run.train_steps)
    if step == begun_at:
        return
    if validate is not None and progress.validated != step:
        _validate(job, validate, report, progress)
    if not _is_due(job.run.save_checkpoint_steps, step):
        _save(save, progress, report)


def at_step(values: Sequence[T], starts: Sequence[int], step: int) -> T:
    """The value in force in update `step`: values[i] holds after `starts[i]` updates."""
    current = values[0]
    for value, start in zip(values, starts, strict=True):
        if step > start:
            current = value
    return current


def dropout_at(dropout: RegularizationConfig, step: int) -> tuple[float, float]:
    """Dropout on residual branches and on attention weights in update `step`."""
    steps = dropout.dropout_steps
    return at_step(dropout.dropout, steps, step), at_step(dropout.attention_dropout, steps, step)
