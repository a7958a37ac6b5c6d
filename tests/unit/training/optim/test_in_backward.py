"""Updates inside the backward pass equal updates after it exactly, and hold fewer gradients at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onmt_llm.config.learning import OptimConfig
from onmt_llm.errors import ConfigError, OnmtLlmError
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.optim.build import build_optimizer, scale_and_clip, trainable
from onmt_llm.training.optim.in_backward import backward_and_step

SETTINGS = {"weight_decay": 0.1, "galore_rank": 8, "max_grad_norm": 0.0}
LANGUAGE_MODEL = {"encoder_layers": 0, "position": "rotary", "hidden_size": 16, "heads": 2, "tie_embeddings": True}


def needed(name: str) -> None:
    if "bit" in name:
        pytest.importorskip("bitsandbytes")
    if name in ("lion", "muon", "galore"):
        pytest.importorskip("pytorch_optimizer")


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in state.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize(
    "name", ["adamw", "adam", "kahan", "adafactor", "adagrad", "sgd", "lion", "muon", "galore", "adamw8bit"]
)
def test_weights_norms_and_state_are_those_of_the_ordinary_way(tiny_model: Transformer, name: str) -> None:
    needed(name)
    kahan = name == "kahan"
    start = {key: value.clone() for key, value in tiny_model.to(torch.bfloat16 if kahan else None).state_dict().items()}
    ids, ends = torch.randint(1, 20, (3, 5, 9)), []
    for inside in (False, True):
        tiny_model.load_state_dict(start)
        optimizer = build_optimizer(
            tiny_model, OptimConfig(optim="adamw" if kahan else name, learning_rate=0.01, **SETTINGS), pure_bf16=kahan
        )
        norms = []
        for ids_BT in ids:
            loss = tiny_model(ids_BT).float().logsumexp(-1).sum()
            if inside:
                norms.append(backward_and_step(loss, optimizer, factor=0.25))
                assert all(p.grad is None for p in tiny_model.parameters())
            else:
                loss.backward()
                norms.append(scale_and_clip(trainable(tiny_model), factor=0.25, max_norm=0))
                optimizer.step()
                optimizer.zero_grad()
        state = optimizer.state_dict()
        groups = [{key: value for key, value in group.items() if key != "lr"} for group in state["param_groups"]]
        ends.append((norms, flat({**tiny_model.state_dict(), "optimizer": state["state"]}), groups))
    (norms, tensors, groups), (inside_norms, inside_tensors, inside_groups) = ends
    assert inside_norms == pytest.approx(norms, rel=1e-2 if kahan else 1e-5)
    assert groups == inside_groups and tensors.keys() == inside_tensors.keys()
    for key, value in tensors.items():
        other = inside_tensors[key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else key.endswith("projector") or value == other


def test_there_is_one_gradient_at_a_time() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(5)))
    optimizer, most = build_optimizer(model, OptimConfig()), [0]

    def count(*_: object) -> None:
        most.append(sum(p.grad is not None for p in model.parameters()))

    optimizer.register_step_pre_hook(count)
    backward_and_step(model(torch.ones(2, 4)).sum(), optimizer, factor=1.0)
    assert most[1:] == [1] * 5


@pytest.mark.parametrize("more", [{}, {"use_ckpting": ["block"]}, {"model_dtype": "bf16"}, {"normalization": "sents"}])
def test_a_run_ends_with_the_same_weights_and_figures(copy_task: Any, more: dict[str, Any]) -> None:
    for name in ("after", "inside"):
        run = {**copy_task.config(name).run.model_dump(exclude_unset=True), **more, "dropout": [0.1]}
        run |= {"optimizer_in_backward": name == "inside", "model_task": "lm"}
        copy_task.run(name, run=run, optimizer={"max_grad_norm": 0.0}, architecture=LANGUAGE_MODEL)
    after, inside = copy_task.tensors("after_step_6"), copy_task.tensors("inside_step_6")
    assert all(torch.equal(tensor, inside[name]) for name, tensor in after.items())


def test_a_run_resumes_to_the_bit(copy_task: Any) -> None:
    shared = {**copy_task.config("whole").run.model_dump(exclude_unset=True), "optimizer_in_backward": True}
    for name, steps in (("whole", 6), ("half", 3)):
        run = {**shared, "save_model": str(copy_task.folder / name), "train_steps": steps}
        copy_task.run(name, run=run, optimizer={"max_grad_norm": 0.0})
    begin = {"save_model": str(copy_task.folder / "half"), "train_from": str(copy_task.folder / "half_step_3")}
    copy_task.run("half", run={**shared, **begin}, optimizer={"max_grad_norm": 0.0})
    whole, half = copy_task.tensors("whole_step_6"), copy_task.tensors("half_step_6")
    assert all(torch.equal(tensor, half[name]) for name, tensor in whole.items())


def test_a_loss_that_is_not_finite_is_not_learned_from(copy_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onmt_llm.training import loop

    calls: list[float] = []
    monkeypatch.setattr(loop, "backward_and_step", lambda *_, factor: calls.append(factor) or 1.0)
    row = loop.Totals.row
    monkeypatch.setattr(loop.Totals, "row", staticmethod(lambda loss, batch: row(loss, batch) * float("nan")))
    shared = copy_task.config("toy").run.model_dump(exclude_unset=True)
    with pytest.raises(OnmtLlmError, match="loss must be finite"):
        run = {**shared, "optimizer_in_backward": True}
        copy_task.run("toy", run=run, optimizer={"max_grad_norm": 0.0})
    assert not calls


def test_what_needs_all_gradients_is_refused_at_once(copy_task: Any) -> None:
    run = {**copy_task.config().run.model_dump(exclude_unset=True), "optimizer_in_backward": True}
    with pytest.raises(ConfigError, match=r"accum_count is \[2\].*max_grad_norm is 5.*model_dtype is fp16"):
        copy_task.run(run={**run, "accum_count": [2], "model_dtype": "fp16"})
