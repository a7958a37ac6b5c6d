"""The training loop: straight code, to be read from top to bottom.

One update runs forward and backward over the micro-batches of the accumulation window, each with the *sum* of its token
losses. The gradients, summed over ranks, are then divided once by the number of trained tokens in the whole window on
all ranks. So the update does not depend on how examples are divided into micro-batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from onmt_llm.config.learning import TO_THE_END, RegularizationConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import set_dropout
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.metrics.reporter import Reporter
from onmt_llm.training.metrics.stopwatch import Stopwatch
from onmt_llm.training.metrics.totals import Totals, ValidationResult
from onmt_llm.training.optim.build import scale_and_clip, set_learning_rate, trainable
from onmt_llm.training.optim.in_backward import backward_and_step
from onmt_llm.training.optim.precision import non_finite_error
from onmt_llm.training.parallel import in_step
from onmt_llm.training.process.signals import SignalHandler
from onmt_llm.training.result import RunStatus
from onmt_llm.training.state import Progress

T = TypeVar("T")
Save = Callable[[Progress], None]
Validate = Callable[[int], ValidationResult]


def train_loop(
    components: TrainingComponents,
    batches: Iterable[Batch],
    progress: Progress,
    *,
    reporter: Reporter,
    save: Save,
    validate: Validate | None = None,
    signals: SignalHandler | None = None,
) -> RunStatus:
    """Train from `progress.step` to `run.train_steps`.

    Args:
        components: Model, optimiser and settings.
        batches: This rank's micro-batches. Training ends when the batches of all ranks have ended.
        progress: Where to start; kept up to date.
        reporter: Receives the metrics of every update.
        save: Writes a checkpoint.
        validate: Validates the model after a step, on all ranks; None = no validation.
        signals: Requests from outside, an entered context; None = there are none.

    Returns:
        "finished", "stopped early", "interrupted", "out of time", or "loss spike", after which the run rolls back.

    Raises:
        DataError: There is no batch at all.
        OnmtLlmError: Loss or gradients are no longer finite.
    """
    run, world, parameters = components.run, components.world, trainable(components.model)
    stream, first_step = Stopwatch(in_step(batches, world, sharded=components.module.is_sharded)), progress.step
    components.precision.set_initial_scale(progress)
    components.model.train()
    handler = signals or SignalHandler()
    with components.profiler, components.pulse:
        # An interrupted run saves at once; the validation that was due then is run now.
        early = progress.step > progress.validated and _is_due(run.valid_steps, progress.step)
        early = early and validate is not None and _validate(components, validate, reporter, progress)
        while progress.step < run.train_steps and not early:
            step = progress.step + 1
            rate = components.schedule.rate(step)
            set_learning_rate(components.optimizer, rate)
            set_dropout(components.model, *dropout_at(components.regularization, step))
            components.profiler.begin(step)

            totals, deferred = _accumulate(components, stream, step, progress.loss_scale)
            if not totals.batches:
                _finish_epochs(components, progress, first_step, reporter=reporter, save=save, validate=validate)
                return RunStatus.FINISHED
            world.sum_gradients(parameters)
            grad_norm = _update(components, progress, totals, deferred, step)
            if grad_norm is None:
                return RunStatus.LOSS_SPIKE
            progress.step = step
            if components.ema is not None:
                components.ema.update(step)
            components.profiler.end(step)
            reporter.update(step, totals, rate=rate, grad_norm=grad_norm, waited=stream.lap())

            request = handler.poll(world)
            last = step == run.train_steps
            due = request.validate or _is_due(run.valid_steps, step)
            if validate is not None and (last or (due and not request.stop)):
                early = _validate(components, validate, reporter, progress)
            best = components.save_best and progress.best_step == step
            if _is_due(run.save_checkpoint_steps, step) or last or early or best or request.save or request.stop:
                _save(components, save, progress, reporter)
            if request.stop and not last:
                why = handler.name if request.stop is RunStatus.INTERRUPTED else "max_time"
                logger.warning("Stopped by %s after step %d.", why, step)
                return request.stop
    if early:
        logger.info("Stopped at step %d: %s.", progress.step, components.early_stopping.reason)
        return RunStatus.STOPPED_EARLY
    return RunStatus.FINISHED


def _is_due(every: int, step: int) -> bool:
    return step > 0 and step % every == 0


def _accumulate(
    components: TrainingComponents, stream: Iterator[tuple[Batch, bool]], step: int, scale: float
) -> tuple[Totals, Tensor | None]:
    """Forward and backward over the window of `step`; the gradients of the summed loss stay in the parameters.

    A rank whose batches have ended adds nothing, and continues as long as other ranks have batches: see `in_step`.

    Returns:
        The totals of the window, and with `optimizer_in_backward` the loss whose backward pass is still to be run.
    """
    device = components.world.device
    row, deferred = Totals.empty_row(device, components.corpora), None
    for _ in range(at_step(components.run.accum_count, components.run.accum_steps, step)):
        batch, counts = next(stream, (None, False))
        if batch is None:
            break
        components.pulse.beat(step)
        batch = batch.to(device)
        with components.precision.compute(device):
            loss = components.module(batch, objective=components.objective, scale=scale, corpora=components.corpora)
        if components.performance.optimizer_in_backward:
            deferred = loss.scaled
        else:
            (loss.scaled if counts else 0 * loss.scaled).backward()
        if counts:
            row += Totals.row(loss, batch)
    return Totals.from_row(components.world.sum(row)), deferred


def _update(
    components: TrainingComponents, progress: Progress, totals: Totals, deferred: Tensor | None, step: int
) -> float | None:
    """One optimiser step with the window's gradients, or with those of the backward pass of `deferred`; returns their
    norm, or None if the run should roll back."""
    if totals.tokens and components.spike_detector(progress, totals.mean_loss, step):
        return None
    if not math.isfinite(totals.loss):
        raise non_finite_error("loss", totals.loss, step)
    if totals.tokens == 0:
        logger.warning(
            "Step %d: none of its %d examples has a trained token; nothing is updated.", step, totals.examples
        )
        components.optimizer.zero_grad(set_to_none=True)
        return 0.0
    count = totals.rewards.preferences or (
        totals.tokens if components.run.normalization == "tokens" else totals.examples
    )
    factor = 1.0 / (count * progress.loss_scale)
    if deferred is None:
        grad_norm = scale_and_clip(trainable(components.model), factor=factor, max_norm=components.optim.max_grad_norm)
    else:
        grad_norm = backward_and_step(deferred, components.optimizer, factor=factor)
    if not math.isfinite(grad_norm) and not components.precision.scaled and components.spike_detector.rolls_back:
        components.spike_detector.roll_back(progress, f"the gradient is {grad_norm}", step)
        return None
    if components.precision.accept(progress, grad_norm, step=step) and deferred is None:
        components.optimizer.step()
    components.optimizer.zero_grad(set_to_none=True)
    return grad_norm


def _validate(components: TrainingComponents, validate: Validate, reporter: Reporter, progress: Progress) -> bool:
    """Validate and record the scores; True if the run should stop early."""
    with reporter.pause(), components.pulse.pause():
        result = validate(progress.step)
    progress.validated = progress.step
    progress.best_ppl = min(progress.best_ppl, result.totals.ppl)
    progress.scores = {name: float(score) for name, score in result.metrics.items() if math.isfinite(score)}
    early = components.early_stopping(progress, result.metrics)
    reporter.validation(progress.step, result, patience=components.early_stopping.left(progress))
    if early:
        reporter.finish(progress.step)
    return early


def _save(components: TrainingComponents, save: Save, progress: Progress, reporter: Reporter) -> None:
    progress.rollbacks = 0
    progress.report = reporter.state()
    with reporter.pause(), components.pulse.pause():
        save(progress)


def _finish_epochs(
    components: TrainingComponents,
    progress: Progress,
    first_step: int,
    *,
    reporter: Reporter,
    save: Save,
    validate: Validate | None,
) -> None:
    """After the last epoch on all ranks: validate and save, unless that is done already.

    Raises:
        DataError: The corpora gave no example.
    """
    step = progress.step
    if step == 0:
        raise DataError("The training corpora must give at least one example, but gave none.")
    train_steps, schedule = components.run.train_steps, components.schedule
    logger.info("All epochs are done after step %d of train_steps %d.", step, train_steps)
    if step == first_step:
        return
    reporter.finish(step)
    if schedule.method in TO_THE_END and schedule.rate(step) > schedule.rate(train_steps):
        logger.warning(
            "decay_method %s ends at train_steps, so the learning rate has only decayed to %.3g; "
            "with train_steps %d it would decay to %.3g in these epochs.",
            *(schedule.method, schedule.rate(step), step, schedule.rate(train_steps)),
        )
    if validate is not None and progress.validated != step:
        _validate(components, validate, reporter, progress)
    if not _is_due(components.run.save_checkpoint_steps, step):
        _save(components, save, progress, reporter)


def at_step(values: Sequence[T], starts: Sequence[int], step: int) -> T:
    """The value for update `step`: values[i] applies after `starts[i]` updates."""
    current = values[0]
    for value, start in zip(values, starts, strict=True):
        if step > start:
            current = value
    return current


def dropout_at(dropout: RegularizationConfig, step: int) -> tuple[float, float]:
    """Dropout of residual branches and of attention weights in update `step`."""
    steps = dropout.dropout_steps
    return at_step(dropout.dropout, steps, step), at_step(dropout.attention_dropout, steps, step)
