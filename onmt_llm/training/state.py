"""The training state beside a checkpoint's weights: what a run needs to resume exactly.

    train_state/state.json               step, settings, best perplexity; RNG and data position of each rank
    train_state/optimizer.safetensors    the optimiser's tensors, named `<parameter>/<slot>`
    train_state/shards/                  or the parts of them that each process held

Both are plain data. They are written inside the checkpoint's temporary directory, so weights and state appear together
or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from onmt_llm.checkpoint.directory import OPTIMIZER_FILE, STATE_PREFIX, read_manifest, refuse_damage
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet, SafetensorsWriter
from onmt_llm.checkpoint.files.shards import SHARDS_DIRECTORY, TensorPart, open_shards
from onmt_llm.checkpoint.store import TensorReader
from onmt_llm.errors import CheckpointError
from onmt_llm.training.process.shards import gathered, read_like
from onmt_llm.training.run_folder import STATE_DIRECTORY, STATE_FILE

STATE_VERSION = 2
GROUP_STEP = "group_step"
"""Slot for the step count of the parameter's group."""

Collect = Callable[[Iterable[tuple[str, Any]]], Iterator[tuple[str, Any]]]


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        step: Updates done.
        validated: Step of the last validation.
        best_step: Step of the best validation by the criteria of early stopping; 0 before the first.
        best_ppl: Best validation perplexity so far; inf before the first.
        best: Scores of the best validation, by criterion of early stopping.
        scores: Finite scores of the last validation, by metric.
        worse_validations: Later validations that were worse by all criteria.
        stalled_validations: Later validations that were neither better nor worse by all criteria.
        loss_scale: Current loss scale (float16).
        scaled: `loss_scale` comes from a run in float16.
        good_steps: Updates since the loss scale changed.
        losses: Losses of the last updates, for detecting loss spikes.
        rollbacks: Rollbacks since the last regular checkpoint.
        report: State of the reporter: sums since the last report.
    """

    step: int = 0
    validated: int = 0
    best_step: int = 0
    best_ppl: float = math.inf
    best: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    worse_validations: int = 0
    stalled_validations: int = 0
    loss_scale: float = 1.0
    scaled: bool = False
    good_steps: int = 0
    losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingState:
    """Content of a `train_state` folder to write.

    Attributes:
        tensors: The optimiser's tensors, whole or this rank's parts of them, by `<parameter>/<slot>`.
        json_text: Content of `state.json`.
    """

    tensors: dict[str, TensorPart]
    json_text: str


@dataclass(frozen=True)
class SavedState:
    """Content of a `train_state` folder, except the optimiser's tensors.

    Attributes:
        directory: The folder.
        progress: Progress of the run.
        optimizer: Name of the optimiser.
        settings: Optimiser, learning rate and clipping, by option name.
        seed: Seed of the run.
        ranks: RNG and data position of each process.
        values: Non-tensor values of the optimiser's state, by `<parameter>/<slot>`.
        options: Other options of the run, by name.
    """

    directory: Path
    progress: Progress
    optimizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    ranks: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def collect_state(
    model: nn.Module, optimizer: Optimizer, run: SavedState, *, collect: Collect = gathered
) -> TrainingState:
    """The training state as it is now; its tensors are the optimiser's own, not copies, unless sharded ones are
    gathered.

    Args:
        model: Gives the optimiser's parameters their names.
        optimizer: The optimiser.
        run: Everything but the optimiser's state.
        collect: `gathered`, or `own_parts` to collect only what this rank writes of sharded tensors.
    """
    # Sorted, since a resumed run has another order: equal states must make equal files.
    found = sorted(_slots(model, optimizer), key=lambda slot: slot[0])
    slots = dict(collect(found))
    tensors = {slot: value for slot, value in slots.items() if isinstance(value, TensorPart)}
    progress = run.progress
    record = {
        "version": STATE_VERSION,
        "progress": {
            **dataclasses.asdict(progress),
            "best_ppl": None if math.isinf(progress.best_ppl) else progress.best_ppl,
            "best": {name: score if math.isfinite(score) else repr(score) for name, score in progress.best.items()},
        },
        "optimizer": run.optimizer,
        "settings": run.settings,
        "seed": run.seed,
        "ranks": run.ranks,
        "values": {slot: value for slot, value in slots.items() if slot not in tensors},
        "options": run.options,
    }
    return TrainingState(tensors, json.dumps(record))


def write_state_text(directory: Path, state: TrainingState) -> None:
    """Write everything but the tensors into `directory`, which is created."""
    directory.mkdir()
    (directory / STATE_FILE).write_text(state.json_text, encoding="utf-8")


def write_optimizer(directory: Path, state: TrainingState) -> None:
    """Write the tensors, one at a time, into `directory`."""
    with SafetensorsWriter(directory / OPTIMIZER_FILE) as writer:
        for slot, part in state.tensors.items():
            writer.add(slot, part.tensor)


def read_state(checkpoint: Path) -> SavedState | None:
    """The training state in a checkpoint directory; None if it has none.

    Raises:
        CheckpointError: It is damaged, or was written by a newer program.
    """
    directory = checkpoint / STATE_DIRECTORY
    file = directory / STATE_FILE
    manifest = read_manifest(checkpoint)
    if manifest is not None:
        refuse_damage(checkpoint, manifest.problems(lambda name: name == f"{STATE_DIRECTORY}/{STATE_FILE}"))
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["version"] > STATE_VERSION:
            raise CheckpointError(
                f"{file} has version {record['version']}, but this program reads up to {STATE_VERSION}."
            )
        best = record["progress"]["best_ppl"]
        # Version 1 has no step of the last validation: a validation that was due was done.
        progress = Progress(
            **{
                "validated": record["progress"]["step"],
                **record["progress"],
                "best_ppl": math.inf if best is None else best,
            }
        )
        progress.best = {name: float(score) for name, score in progress.best.items()}
        return SavedState(
            directory=directory,
            progress=progress,
            optimizer=record["optimizer"],
            settings=record["settings"],
            seed=record["seed"],
            ranks=record["ranks"],
            values=record["values"],
            options=record.get("options", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a valid training state ({error!r}).") from error


def load_optimizer(saved: SavedState, model: nn.Module, optimizer: Optimizer) -> None:
    """Load the optimiser's state of `saved`.

    Raises:
        CheckpointError: It belongs to other parameters than those trained now.
    """
    manifest = read_manifest(saved.directory.parent)
    if (saved.directory / SHARDS_DIRECTORY).is_dir():
        tensors: TensorReader = open_shards(saved.directory.parent, manifest, below=STATE_PREFIX)
    else:
        listed = None if manifest is None else manifest.files_below(STATE_DIRECTORY)
        tensors = SafetensorsSet(saved.directory, [OPTIMIZER_FILE], listed=listed)
    slots = [*tensors.names(), *saved.values]
    names = _parameter_names(model, optimizer)
    known = {slot.partition("/")[0] for slot in slots}
    if known and known != set(names):
        odd = ", ".join(sorted(known ^ set(names))[:5])
        raise CheckpointError(
            f"The optimiser state in {saved.directory} must be of the parameters trained now, but differs in: {odd}.",
            hint="start with a new optimiser state: -reset_optim states",
        )
    index = {name: number for number, name in enumerate(names)}
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Any]] = {}
    for slot in slots:
        name, *path = slot.split("/")
        place = state.setdefault(index[name], {})
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = read_like(parameters[name], tensors, slot) if slot in tensors else saved.values[slot]
    steps = {number: slots.pop(GROUP_STEP) for number, slots in state.items() if GROUP_STEP in slots}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for group, numbers in zip(optimizer.param_groups, _group_numbers(optimizer), strict=True):
        counted = [steps[number] for number in numbers if number in steps]
        if counted:
            group["step"] = max(counted)


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimiser's parameters in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _slots(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """Everything in the optimiser's state: `<parameter>/<slot>` and value, nested slots (bitsandbytes') joined."""
    names = _parameter_names(model, optimizer)
    for index, slots in optimizer.state_dict()["state"].items():
        yield from _flatten(names[index], slots)
    # Some optimisers count steps by group. A resumed run may have other groups, but has the same parameters.
    for group, numbers in zip(optimizer.param_groups, _group_numbers(optimizer), strict=True):
        if "step" in group:
            yield from ((f"{names[number]}/{GROUP_STEP}", int(group["step"])) for number in numbers)


def _group_numbers(optimizer: Optimizer) -> list[list[int]]:
    """Indices of the parameters of each group in the optimiser's state."""
    return [group["params"] for group in optimizer.state_dict()["param_groups"]]


def _flatten(prefix: str, slots: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in slots.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}/{key}", value)
        else:
            yield f"{prefix}/{key}", value
