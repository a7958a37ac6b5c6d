"""`training.state`: the training state as plain files, and damage to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from onmt_llm.errors import CheckpointError
from onmt_llm.training import state


def trained_pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW([{"params": [model[0].weight]}, {"params": [model[1].weight, model[0].bias]}])
    model(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def write(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: state.Progress | None = None,
) -> Path:
    content = state.collect_state(
        model,
        optimizer,
        state.SavedState(
            directory,
            progress=progress or state.Progress(step=3),
            optimizer="adamw",
            settings={"learning_rate": 0.1},
            seed=4,
            ranks=[{}],
        ),
    )
    state.write_state_text(directory / state.STATE_DIRECTORY, content)
    state.write_optimizer(directory / state.STATE_DIRECTORY, content)
    return directory


def test_optimiser_state_survives_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = trained_pair()
    saved = state.read_state(write(tmp_path, model, optimizer))
    assert saved is not None and saved.progress == state.Progress(step=3) and saved.seed == 4
    other_model, other = trained_pair()
    state.load_optimizer(saved, other_model, other)
    mine, theirs = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert mine.keys() == theirs.keys()
    for index, slots in mine.items():
        assert slots.keys() == theirs[index].keys()
        assert all(torch.equal(slots[name], theirs[index][name]) for name in slots)


def test_nothing_of_how_far_a_run_is_gets_lost(tmp_path: Path) -> None:
    progress = state.Progress(
        step=9,
        validated=8,
        best_step=4,
        best_ppl=3.25,
        best={"ppl": 3.25, "BLEU": float("inf")},
        scores={"ppl": 3.5},
        worse_validations=1,
        stalled_validations=2,
        loss_scale=64.0,
        scaled=True,
        good_steps=7,
        losses=[1.5, 2.5],
        rollbacks=1,
        report={"window": [1.0, 2.0], "corpora": {"news": [1.0, 2.0]}},
    )
    begun = dataclasses.asdict(state.Progress())
    assert all(value != begun[name] for name, value in dataclasses.asdict(progress).items())
    saved = state.read_state(write(tmp_path, *trained_pair(), progress))
    assert saved is not None and saved.progress == progress


def test_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    saved = state.read_state(write(tmp_path, *trained_pair()))
    model = nn.Sequential(nn.Linear(3, 4))
    assert saved is not None
    with pytest.raises(CheckpointError, match=r"differs in: .*1\.weight"):
        state.load_optimizer(saved, model, torch.optim.AdamW([model[0].weight]))


def test_a_checkpoint_without_state_has_none(tmp_path: Path) -> None:
    assert state.read_state(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1, "progress": 3}', "[]"])
def test_damaged_state_is_one_sentence(tmp_path: Path, content: str) -> None:
    write(tmp_path, *trained_pair())
    (tmp_path / state.STATE_DIRECTORY / state.STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json is not a valid training state"):
        state.read_state(tmp_path)


def test_state_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    write(tmp_path, *trained_pair())
    (tmp_path / state.STATE_DIRECTORY / state.STATE_FILE).write_text('{"version": 9}')
    with pytest.raises(CheckpointError, match="has version 9"):
        state.read_state(tmp_path)
