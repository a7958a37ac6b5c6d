"""The training loop: batch-layout invariance, accumulation, frozen weights, error messages."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from onmt_llm.config.learning import OptimConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import DataError, OnmtLlmError
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.loop import at_step, train_loop
from onmt_llm.training.metrics.reporter import Reporter, Totals, ValidationResult
from onmt_llm.training.optim.build import build_optimizer
from onmt_llm.training.optim.precision import Precision, choose_precision
from onmt_llm.training.optim.schedule import build_schedule
from onmt_llm.training.parallel import TrainingModule
from onmt_llm.training.process.dist import World
from onmt_llm.training.process.signals import SignalHandler
from onmt_llm.training.state import Progress
from onmt_llm.training.validation.early_stopping import EarlyStopping
from options import train_config

MakeBatch = Callable[[Sequence[Sequence[int]], Sequence[int]], Batch]
CPU = torch.device("cpu")


def examples(count: int, seed: int = 3) -> tuple[list[list[int]], list[int]]:
    rng = random.Random(seed)
    rows = [[rng.randrange(3, 23) for _ in range(rng.randint(4, 12))] for _ in range(count)]
    return rows, [rng.randint(0, 3) for _ in rows]


def make_components(
    model: Transformer, run: dict[str, Any], precision: Precision | None = None, **optim: Any
) -> TrainingComponents:
    settings = OptimConfig(**{"learning_rate": 0.01, "max_grad_norm": 0.0, **optim})
    config = train_config({"run": run})
    return TrainingComponents(
        module=TrainingModule(model),
        optimizer=build_optimizer(model, settings),
        schedule=build_schedule(settings, train_steps=config.run.train_steps, hidden_size=32),
        precision=precision or Precision(weights=torch.float32),
        world=World(rank=0, size=1, device=CPU),
        run=config.run,
        optim=settings,
        regularization=config.regularization,
    )


def run_loop(components: TrainingComponents, batches: Iterator[Batch] | list[Batch], **kwargs: Any) -> str:
    reporter = Reporter(start_step=0, train_steps=components.run.train_steps, progress="none")
    kwargs = {"save": lambda progress: None, **kwargs}
    return train_loop(components, batches, kwargs.pop("progress", Progress()), reporter=reporter, **kwargs)


def weights_after(model: Transformer, components: TrainingComponents, batches: list[Batch]) -> dict[str, torch.Tensor]:
    run_loop(components, batches)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("normalization", ["tokens", "sents"])
def test_sixteen_micro_batches_of_one_equal_one_of_sixteen(
    tiny_model: Transformer, make_batch: MakeBatch, normalization: str
) -> None:
    rows, prompts = examples(16)
    start = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    # plain gradient descent shows the gradients themselves, which Adam's first step would hide
    settings = {"optim": "sgd", "learning_rate": 1.0}
    layouts = {1: [make_batch(rows, prompts)], 16: [make_batch([r], [p]) for r, p in zip(rows, prompts, strict=True)]}
    results = []
    for count, batches in layouts.items():
        tiny_model.load_state_dict(start)
        components = make_components(
            tiny_model, {"train_steps": 1, "accum_count": [count], "normalization": normalization}, **settings
        )
        results.append(weights_after(tiny_model, components, batches))
    for name in start:
        assert not torch.equal(results[0][name], start[name])
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-6)


def test_the_update_is_that_of_plain_cross_entropy(tiny_model: Transformer, make_batch: MakeBatch) -> None:
    batch = make_batch(*examples(5))
    F.cross_entropy(tiny_model(batch.tgt_BT).flatten(0, 1), batch.labels_BT.flatten()).backward()
    expected = {name: p.detach() - 0.5 * p.grad for name, p in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    got = weights_after(
        tiny_model, make_components(tiny_model, {"train_steps": 1}, optim="sgd", learning_rate=0.5), [batch]
    )
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_under_lora_only_the_adapters_change(tiny_model: Transformer, make_batch: MakeBatch) -> None:
    add_lora(tiny_model, ["q_proj", "down_proj"], rank=2, alpha=4.0)
    freeze_all_but_lora(tiny_model)
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    batches = [make_batch(*examples(4, seed)) for seed in range(3)]
    after = weights_after(tiny_model, make_components(tiny_model, {"train_steps": 3}), batches)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".lora_" in name}
    assert all(p.grad is None for name, p in tiny_model.named_parameters() if ".lora_" not in name)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_trained_weights_are_float32_and_learn_in_every_dtype(
    tiny_model: Transformer, make_batch: MakeBatch, dtype: Any, lora: bool
) -> None:
    precision = choose_precision(dtype, lora=lora, loss_scale=0.0, device=CPU)
    tiny_model.to(precision.weights)
    if lora:
        add_lora(tiny_model, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"], rank=8, alpha=16.0)
        freeze_all_but_lora(tiny_model)
    assert all(p.dtype == torch.float32 for p in tiny_model.parameters() if p.requires_grad)
    batch, losses = make_batch(*examples(4)), []

    class Recorder(Reporter):
        def update(self, step: int, totals: Totals, **rest: float) -> None:
            losses.append(totals.xent)

    components = make_components(tiny_model, {"train_steps": 20}, precision)
    reporter = Recorder(start_step=0, train_steps=20, progress="none")
    train_loop(components, [batch] * 20, Progress(), reporter=reporter, save=lambda progress: None)
    assert losses[-1] < 0.8 * losses[0]


def test_accumulation_and_dropout_change_at_their_steps(tiny_model: Transformer, make_batch: MakeBatch) -> None:
    assert [at_step([1, 2, 5], [0, 3, 4], step) for step in (1, 3, 4, 5, 9)] == [1, 1, 2, 5, 5]
    drawn, rates = [], []

    def stream() -> Iterator[Batch]:
        while True:
            drawn.append(1)
            rates.append(tiny_model.decoder.layers[0].dropout)
            yield make_batch(*examples(1))

    run = {
        "train_steps": 3,
        "accum_count": [1, 3],
        "accum_steps": [0, 2],
        "dropout": [0.5, 0.1],
        "dropout_steps": [0, 1],
    }
    run_loop(make_components(tiny_model, {**run, "attention_dropout": [0.0, 0.0]}), stream())
    assert len(drawn) == 1 + 1 + 3
    assert rates == [0.5, 0.1, 0.1, 0.1, 0.1]


def test_saves_and_validates_when_asked_and_at_the_end(tiny_model: Transformer, make_batch: MakeBatch) -> None:
    saved, validated = [], []
    progress = Progress()

    def validate(step: int) -> ValidationResult:
        validated.append(step)
        return ValidationResult(Totals(nll=1.0, tokens=1))

    components = make_components(tiny_model, {"train_steps": 7, "save_checkpoint_steps": 3, "valid_steps": 2})
    batches = [make_batch(*examples(1))] * 7
    status = run_loop(components, batches, save=lambda p: saved.append(p.step), validate=validate, progress=progress)
    assert (status, saved, validated) == ("finished", [3, 6, 7], [2, 4, 6, 7])
    validated.clear()
    components = make_components(tiny_model, {"train_steps": 3, "valid_steps": 100})
    signals = SignalHandler(validate_every=1e-9)
    run_loop(components, [make_batch(*examples(2))] * 3, validate=validate, signals=signals)
    assert validated == [1, 2, 3]


def test_early_stopping_counts_validations_without_a_better_perplexity(
    tiny_model: Transformer, make_batch: MakeBatch
) -> None:
    scores = iter([5.0, 4.0, 4.5, 3.0, 3.1, 3.2, 3.3])
    saved: list[int] = []
    components = make_components(tiny_model, {"train_steps": 50, "valid_steps": 1})
    components.early_stopping = EarlyStopping(2)
    status = run_loop(
        components,
        [make_batch(*examples(1))] * 50,
        save=lambda p: saved.append(p.step),
        validate=lambda step: ValidationResult(Totals(nll=next(scores), tokens=1)),
    )
    assert (status, saved) == ("stopped early", [6])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tiny_model: Transformer, make_batch: MakeBatch, number: signal.Signals) -> None:
    saved: list[int] = []

    def stream() -> Iterator[Batch]:
        for step in range(10):
            if step == 2:
                os.kill(os.getpid(), number)
            yield make_batch(*examples(1))

    components = make_components(tiny_model, {"train_steps": 10})
    with SignalHandler() as signals:
        status = run_loop(components, stream(), save=lambda p: saved.append(p.step), signals=signals)
    assert (status, saved) == ("interrupted", [3])


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny_model: Transformer, make_batch: MakeBatch) -> None:
    batches = [make_batch(*examples(1))] * 4

    def stream() -> Iterator[Batch]:
        yield from batches[:2]
        with torch.no_grad():
            tiny_model.lm_head.weight[5, 5] = float("nan")
        yield from batches[2:]

    with pytest.raises(OnmtLlmError, match="loss must be finite, but is nan at step 3"):
        run_loop(make_components(tiny_model, {"train_steps": 4}), stream())


def test_a_loss_that_is_not_finite_at_once_is_not_blamed_on_the_learning_rate(
    tiny_model: Transformer, make_batch: MakeBatch
) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(OnmtLlmError, match=r"at step 1.*\n.*param_init, train_from") as caught:
        run_loop(make_components(tiny_model, {"train_steps": 4}), iter([make_batch(*examples(1))] * 4))
    assert "learning_rate" not in str(caught.value)


def test_data_that_end_end_the_run_with_all_that_is_due(tiny_model: Transformer, make_batch: MakeBatch) -> None:
    components, saved, validated = make_components(tiny_model, {"train_steps": 9, "accum_count": [2]}), [], []

    def judge(step: int) -> ValidationResult:
        validated.append(step)
        return ValidationResult(Totals(tokens=1))

    batches = [make_batch(*examples(1))] * 3
    progress = Progress()
    status = run_loop(components, batches, progress=progress, save=lambda at: saved.append(at.step), validate=judge)
    assert (status, progress.step, saved, validated) == ("finished", 2, [2], [2])
    with pytest.raises(DataError, match="must give at least one example"):
        run_loop(make_components(tiny_model, {"train_steps": 4}), [])


@pytest.mark.parametrize(
    ("decay", "batches", "warned"), [("cosine", 2, True), ("cosine", 9, False), ("none", 2, False)]
)
def test_epochs_that_end_before_the_schedule_are_warned_of(
    tiny_model: Transformer,
    make_batch: MakeBatch,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    decay: str,
    batches: int,
    warned: bool,
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    components = make_components(tiny_model, {"train_steps": 9}, decay_method=decay)
    assert run_loop(components, [make_batch(*examples(1))] * batches) == "finished"
    assert ("with train_steps 2 it would decay to 0" in caplog.text) == warned


def test_a_window_without_trained_tokens_changes_nothing(
    tiny_model: Transformer, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    rows, _ = examples(2)
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    batch = make_batch(rows, [len(row) + 1 for row in rows])
    after = weights_after(tiny_model, make_components(tiny_model, {"train_steps": 1}), [batch])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "none of its 2 examples has a trained token" in caplog.text
