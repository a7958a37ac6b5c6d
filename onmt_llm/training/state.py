"""The training state beside a checkpoint's weights: what a run needs to go on as if it had never stopped.

    train_state/state.json               step, settings, best perplexity, and of each rank RNG and data position
    train_state/optimizer.safetensors    the optimiser's tensors, named `<parameter>/<slot>`

Both are plain data. They are written inside the checkpoint's temporary directory, so that weights and state appear
together or not at all.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import random
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onmt_llm.checkpoint.safetensors_io import SafetensorsSet, ShardWriter
from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger

STATE_DIRECTORY = "train_state"
STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_VERSION = 1
GROUP_STEP = "group_step"
"""Slot that stands for the steps of the parameter's group."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Updates done.
        best_ppl: Best validation perplexity so far; inf before the first.
        best: Scores of the best validation by the criteria of early stopping.
        worse_validations: Validations since then that were worse by all of them.
        stalled_validations: Those that were neither better nor worse by all of them.
        loss_scale: Present loss scale (float16).
        good_steps: Updates since the loss scale changed.
    """

    step: int = 0
    best_ppl: float = math.inf
    best: dict[str, float] = field(default_factory=dict)
    worse_validations: int = 0
    stalled_validations: int = 0
    loss_scale: float = 1.0
    good_steps: int = 0


@dataclass(frozen=True)
class SavedState:
    """Content of a `train_state` folder.

    Attributes:
        directory: The folder.
        progress: How far the run was.
        optimizer: Name of the optimiser.
        settings: Optimiser, learning rate and clipping, by option name.
        seed: Seed of the run.
        ranks: RNG and data position of each process.
        values: What of the optimiser's state is no tensor, by `<parameter>/<slot>`.
    """

    directory: Path
    progress: Progress
    optimizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    ranks: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


def checkpoint_path(save_model: str, step: int) -> Path:
    """Where the checkpoint of `step` goes."""
    return Path(f"{save_model}_step_{step}")


def average_path(checkpoint: Path) -> Path:
    """Where the running average of the weights goes that belongs to a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}_ema")


def checkpoints(save_model: str) -> dict[int, Path]:
    """Complete checkpoints with the prefix `save_model`, by step, in order."""
    prefix = Path(save_model)
    pattern = re.compile(re.escape(prefix.name) + r"_step_(\d+)")
    found = {}
    for path in prefix.parent.iterdir() if prefix.parent.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and (path / CONFIG_FILE).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def prune(save_model: str, *, keep: int, newest: int, protected: Collection[Path] = ()) -> None:
    """Remove all but the last `keep` checkpoints up to step `newest`; -1 keeps all.

    To be called after the newest is complete. Checkpoints of later steps belong to an earlier, longer run and are left
    alone, as are those in `protected` (a base that others refer to).
    """
    if keep < 0:
        return
    held = {path.resolve() for path in protected}
    candidates = [path for step, path in checkpoints(save_model).items() if step <= newest]
    for path in candidates[: max(0, len(candidates) - keep)]:
        if path.resolve() in held or average_path(path).resolve() in held:
            continue
        # Renamed first: a crash in the middle of the removal must not leave half a checkpoint under its name.
        trash = path.with_name(f".{path.name}.old-{os.getpid()}")
        path.rename(trash)
        shutil.rmtree(trash)
        shutil.rmtree(average_path(path), ignore_errors=True)
        logger.info("Removed checkpoint %s (keep_checkpoint %d).", path, keep)


def write_state(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    name: str,
    progress: Progress,
    settings: dict[str, Any],
    seed: int,
    ranks: list[dict[str, Any]],
) -> None:
    """Write the training state into `directory`, which is created.

    Args:
        directory: `train_state` inside the checkpoint.
        model: Gives the optimiser's parameters their names.
        optimizer: Its tensors are written one at a time.
        name: The optimiser's name among the options.
        progress: How far the run is.
        settings: Optimiser, learning rate and clipping, by option name.
        seed: Seed of the run.
        ranks: RNG and data position of each process.
    """
    directory.mkdir()
    values: dict[str, Any] = {}
    with ShardWriter(directory / OPTIMIZER_FILE) as writer:
        for slot, value in _slots(model, optimizer):
            if isinstance(value, Tensor):
                writer.add(slot, value)
            else:
                values[slot] = value
    record = {
        "version": STATE_VERSION,
        "progress": {
            **dataclasses.asdict(progress),
            "best_ppl": None if math.isinf(progress.best_ppl) else progress.best_ppl,
            "best": {name: score if math.isfinite(score) else repr(score) for name, score in progress.best.items()},
        },
        "optimizer": name,
        "settings": settings,
        "seed": seed,
        "ranks": ranks,
        "values": values,
    }
    with open(directory / STATE_FILE, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())


def read_state(checkpoint: Path) -> SavedState | None:
    """The training state in the checkpoint directory, or None where it has none.

    Raises:
        CheckpointError: It is damaged, or written by a newer program.
    """
    directory = checkpoint / STATE_DIRECTORY
    file = directory / STATE_FILE
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["version"] > STATE_VERSION:
            raise CheckpointError(
                f"{file} has version {record['version']}, but this program reads up to {STATE_VERSION}."
            )
        best = record["progress"]["best_ppl"]
        progress = Progress(**{**record["progress"], "best_ppl": math.inf if best is None else best})
        progress.best = {name: float(score) for name, score in progress.best.items()}
        return SavedState(
            directory=directory,
            progress=progress,
            optimizer=record["optimizer"],
            settings=record["settings"],
            seed=record["seed"],
            ranks=record["ranks"],
            values=record["values"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not a valid training state ({error!r}).") from error


def load_optimizer(saved: SavedState, model: nn.Module, optimizer: Optimizer) -> None:
    """Give `optimizer` the tensors of `saved`.

    Raises:
        CheckpointError: They belong to other parameters than those that are trained now.
    """
    tensors = SafetensorsSet(saved.directory, [OPTIMIZER_FILE])
    slots = [*tensors.names(), *saved.values]
    names = _parameter_names(model, optimizer)
    known = {slot.partition("/")[0] for slot in slots}
    if known and known != set(names):
        odd = ", ".join(sorted(known ^ set(names))[:5])
        raise CheckpointError(
            f"The optimiser state in {saved.directory} must be of the parameters trained now, but differs in: {odd}.",
            hint="begin with a new optimiser: -reset_optim states",
        )
    index = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for slot in slots:
        name, *path = slot.split("/")
        place = state.setdefault(index[name], {})
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = tensors.tensor(slot) if slot in tensors else saved.values[slot]
    steps = {number: slots.pop(GROUP_STEP) for number, slots in state.items() if GROUP_STEP in slots}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for group, numbers in zip(optimizer.param_groups, _group_numbers(optimizer), strict=True):
        counted = [steps[number] for number in numbers if number in steps]
        if counted:
            group["step"] = max(counted)


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimiser's parameters in the order in which its state counts them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _slots(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """Everything in the optimiser's state: `<parameter>/<slot>` and value, nested slots (bitsandbytes') joined."""
    names = _parameter_names(model, optimizer)
    for index, slots in optimizer.state_dict()["state"].items():
        yield from _flatten(names[index], slots)
    # Some optimisers count their steps by group; groups may be others when a run goes on, parameters are not.
    for group, numbers in zip(optimizer.param_groups, _group_numbers(optimizer), strict=True):
        if "step" in group:
            yield from ((f"{names[number]}/{GROUP_STEP}", int(group["step"])) for number in numbers)


def _group_numbers(optimizer: Optimizer) -> list[list[int]]:
    """Numbers of the parameters of each group, as the optimiser's state counts them."""
    return [group["params"] for group in optimizer.state_dict()["param_groups"]]


def _flatten(prefix: str, slots: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in slots.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}/{key}", value)
        else:
            yield f"{prefix}/{key}", value


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of the random generators of python, numpy and torch, as plain data."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Undo of `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_decode(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]), device)


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
