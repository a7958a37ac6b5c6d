"""The moving average of the weights: its recurrence, its files, exact resume."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

from onmt_llm.checkpoint.load import load_model
from onmt_llm.training.optim.ema import EMA

AVERAGED = {"average_decay": 0.3, "average_every": 2, "learning_rate": 0.01}


def test_it_follows_the_recurrence() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = EMA(model, decay=0.5, every=3)
    expected = 0.0
    for step in range(1, 40):
        weight = float(step * step)
        with torch.no_grad():
            model.weight.fill_(weight)
        average.update(step)
        if step == 1:
            expected = weight
        elif step in (4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37):
            share = max(0.5, 1 - (step + 1) / (step + 10))
            expected = (1 - share) * expected + share * weight
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 39 * 39


def test_only_what_is_trained_is_averaged() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = EMA(model, decay=0.5)
    average.update(1)
    with average.in_place():
        assert model.bias.data_ptr() == model.bias.data.data_ptr()
        model.bias.data.fill_(3.0)
    assert torch.equal(model.bias, torch.full((2,), 3.0))


@pytest.mark.parametrize("lora", [False, True])
def test_raw_and_averaged_weights_are_saved_side_by_side_and_resumed_exactly(copy_task: Any, lora: bool) -> None:
    copy_task.run("base", run={"train_steps": 1, "save_model": str(copy_task.folder / "base")})
    more: dict[str, Any] = {"train_from": str(copy_task.folder / "base_step_1")} if lora else {}
    adapters = {"lora": {"lora_layers": ["cross_attn.q_proj", "w_2"]}} if lora else {}

    def go(name: str, **run: Any) -> None:
        settings = {"save_model": str(copy_task.folder / name), "seed": 7, "train_steps": 6, "save_checkpoint_steps": 3}
        copy_task.run(name, optimizer=AVERAGED, run={**settings, "valid_steps": 2, **more, **run}, **adapters)

    go("whole")
    go("plain", train_steps=6)
    go("part", train_from=str(copy_task.folder / "whole_step_3"))
    for suffix in ("", "_ema"):
        whole, part = (copy_task.tensors(f"{name}_step_6{suffix}") for name in ("whole", "part"))
        assert whole.keys() == part.keys() and len(whole) > 0
        assert all(torch.equal(whole[name], part[name]) for name in whole)
    raw, average = copy_task.tensors("whole_step_6"), copy_task.tensors("whole_step_6_ema")
    assert any(not torch.equal(raw[name], average[name]) for name in raw)
    ids = torch.tensor([[4, 5]]), torch.tensor([[2, 4]])
    assert load_model(copy_task.folder / "whole_step_6_ema")(*ids).shape == (1, 2, 16)
    rows = [(row["step"], row["ppl"]) for row in copy_task.validations("whole") if row["step"] > 3]
    assert rows == [(row["step"], row["ppl"]) for row in copy_task.validations("part")]


def test_the_average_is_what_is_validated(copy_task: Any) -> None:
    settings = {
        "train_steps": 4,
        "save_checkpoint_steps": 4,
        "valid_steps": 4,
        "save_model": str(copy_task.folder / "a"),
    }
    copy_task.run("a", optimizer={"average_decay": 0.01, "learning_rate": 0.05}, run=settings)
    perplexity = {
        name: copy_task.run(
            name,
            optimizer={"learning_rate": 1e-12},
            run={
                "train_from": str(copy_task.folder / saved),
                "train_steps": 1,
                "reset_optim": "all",
                "save_model": str(copy_task.folder / name),
            },
        ).best_ppl
        for name, saved in (("raw", "a_step_4"), ("ema", "a_step_4_ema"))
    }
    assert copy_task.validations("a")[-1]["ppl"] == pytest.approx(perplexity["ema"], rel=1e-5)
    assert perplexity["raw"] != pytest.approx(perplexity["ema"], rel=1e-3)


def test_averages_go_with_their_checkpoints(copy_task: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    settings = {"save_checkpoint_steps": 1, "keep_checkpoint": 1, "save_model": str(copy_task.folder / "k")}
    copy_task.run("k", optimizer=AVERAGED, run={**settings, "train_steps": 3})
    assert sorted(path.name for path in copy_task.folder.glob("k_step_*")) == ["k_step_3", "k_step_3_ema"]
    shutil.rmtree(copy_task.folder / "k_step_3_ema")
    resume = {**settings, "train_steps": 4, "train_from": str(copy_task.folder / "k_step_3")}
    copy_task.run("k", optimizer=AVERAGED, run=resume)
    assert "has no averaged weights beside it (k_step_3_ema): a new average is started" in caplog.text
