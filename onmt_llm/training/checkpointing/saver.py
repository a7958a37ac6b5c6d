"""`CheckpointSaver`: write weights or adapter, tokeniser files and training state, all at once or not at all.

The state is copied while the loop waits, and written by a thread while training continues; one checkpoint at a time.
If weights are sharded among the ranks, the main process collects and writes them, or, in a large checkpoint, each rank
writes its own part of them.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from onmt_llm.atomic import write_failed
from onmt_llm.checkpoint.files.shards import TensorPart
from onmt_llm.checkpoint.provenance import PROVENANCE_FILE, provenance_text
from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.output_checks import check_space
from onmt_llm.training.checkpointing.background import BackgroundTask, copy_fits
from onmt_llm.training.checkpointing.content import saved_config, saved_tensors, write_text_side
from onmt_llm.training.checkpointing.provenance import RunHistory
from onmt_llm.training.checkpointing.resume import run_options
from onmt_llm.training.checkpointing.shared_writer import write_together
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.process.dist import World, is_lost_process
from onmt_llm.training.process.rng import rng_state
from onmt_llm.training.process.shards import gathered, local, own_parts
from onmt_llm.training.run_folder import STATE_DIRECTORY, RunLock, checkpoint_path, checkpoints, ema_path, prune
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.state import (
    Collect,
    Progress,
    SavedState,
    TrainingState,
    collect_state,
    write_optimizer,
    write_state_text,
)

# Bytes besides the tensors: vocabulary, tokeniser, random generators, headers.
_SMALL_FILES = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """The content of one checkpoint.

    Attributes:
        path: Its directory.
        step: Updates done.
        best_step: Step whose checkpoint is kept as the best; 0 = none.
        sharded: Each rank writes its own parts of the tensors.
        model: Weights, adapter or twins.
        ema: Their running averages, if any.
        state: The training state.
        provenance: Content of `provenance.json`.
    """

    path: Path
    step: int
    best_step: int
    sharded: bool
    model: dict[str, TensorPart]
    ema: dict[str, TensorPart]
    state: TrainingState
    provenance: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(
            part.tensor.nbytes for parts in (self.model, self.ema, self.state.tensors) for part in parts.values()
        )


@dataclass
class CheckpointSaver:
    """Writes `<save_model>_step_<N>` when called, and removes older checkpoints according to `keep_checkpoint`.

    The running averages of the weights, if any, are written beside it as `..._ema`. Leaving the context waits for the
    checkpoint that is being written, unless the run is to stop at once.

    Attributes:
        setup: What the run was set up from.
        components: Model, optimiser and settings.
        pipeline: Its position is saved.
        seed: Seed of the run.
        lock: The lock of the run's folder, on rank 0.
        written: Checkpoints of this run, in order, including removed ones.
    """

    setup: RunSetup
    components: TrainingComponents
    pipeline: Pipeline
    seed: int
    lock: RunLock | None = None
    written: list[Path] = field(default_factory=list)
    _task: BackgroundTask = field(default_factory=BackgroundTask)
    _buffers: dict[str, Tensor] = field(default_factory=dict)
    _writers: World | None = None

    def __enter__(self) -> CheckpointSaver:
        if self._writes_shards:
            self._writers = self.components.world.with_cpu_group()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):
            try:
                self._task.wait()
            except Exception as error:
                logger.log(logging.DEBUG if is_lost_process(error) else logging.ERROR, "%s", error)

    def __call__(self, progress: Progress) -> None:
        run, world = self.components.run, self.components.world
        if run.keep_checkpoint == 0:
            return
        path = checkpoint_path(run.save_model, progress.step)
        if path.resolve() in map(Path.resolve, self._protected):
            logger.warning("No checkpoint of step %d is saved: the run needs the one at %s.", progress.step, path)
            return
        ranks = world.gather_data({"rng": rng_state(world.device), "data": self.pipeline.state_dict()})
        snapshot = self._snapshot(path, progress, ranks)
        if world.is_main or snapshot.sharded:
            size = snapshot.nbytes
            if self.setup.config.safety.save_async and (self._buffers or copy_fits(size)):
                self._task.wait()
                copied = self._copied(snapshot)
                self._task.start(functools.partial(self._write, copied))
            else:
                self._task.wait()
                self._write(snapshot)
        self.written.append(path)

    def check(self) -> None:
        """Raise an error of the writing thread since the last call."""
        self._task.check()

    def wait(self) -> None:
        """Wait on all ranks until everything is written."""
        self._task.wait()
        self.components.world.barrier()

    @property
    def last(self) -> Path | None:
        """The newest checkpoint."""
        return self.written[-1] if self.written else None

    def _snapshot(self, path: Path, progress: Progress, ranks: list[dict[str, Any]]) -> Snapshot:
        """The content of the checkpoint: the tensors themselves, not copies, unless sharded ones are gathered. Ranks
        other than the main one take part in that, and get nothing."""
        ema, keep, sharded = {}, self.components.world.is_main, self._writes_shards
        collect: Collect = functools.partial(gathered, keep=keep)
        if sharded:
            world = self.components.world
            collect = functools.partial(own_parts, keep=keep, tensor_rank=world.rank % world.tensor_parallel)
        if self.components.ema is not None:
            with self.components.ema.in_place():
                ema = {
                    name: replace(part, tensor=part.tensor.clone()) if sharded else part
                    for name, part in collect(saved_tensors(self.setup, self.components.model))
                }
        state = collect_state(
            self.components.model,
            self.components.optimizer,
            SavedState(
                directory=path / STATE_DIRECTORY,
                progress=progress,
                optimizer=self.components.optimizer_name,
                settings=self.components.optim.model_dump(mode="json"),
                seed=self.seed,
                ranks=ranks,
                options=run_options(self.setup),
            ),
            collect=collect,
        )
        model = dict(collect(saved_tensors(self.setup, self.components.model)))
        best = progress.best_step if self.components.save_best else 0
        provenance = provenance_text(self._history.at(progress, self.components, self.seed)) if keep else ""
        return Snapshot(path, progress.step, best, sharded, model, ema, state, provenance)

    @functools.cached_property
    def _writes_shards(self) -> bool:
        """Whether each rank writes its own parts. An adapter is small, and always whole."""
        mode, module = self.setup.config.safety.checkpoint_shards, self.components.module
        if mode == "off" or not module.is_sharded or self.setup.layers.beside_base is not None:
            return False
        size = sum(parameter.numel() * parameter.itemsize for parameter in module.model.parameters())
        return mode == "on" or size > self.setup.config.safety.whole_bytes

    @functools.cached_property
    def _history(self) -> RunHistory:
        return RunHistory.open(self.setup)

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with copies in CPU memory of everything that training changes."""
        # What was gathered from the ranks is a copy already; the counts of steps are not.
        gathered = self.components.module.is_sharded and not snapshot.sharded
        parameters = () if gathered else self.components.model.parameters()
        fixed = {local(p).data_ptr() for p in parameters if not p.requires_grad}

        def copy(kind: str, parts: dict[str, TensorPart]) -> dict[str, TensorPart]:
            return {
                name: part
                if (part.tensor.data_ptr() in fixed or (gathered and part.tensor.ndim > 0))
                else replace(part, tensor=self._buffer(f"{kind} {name}", part.tensor))
                for name, part in parts.items()
            }

        return replace(
            snapshot,
            model=copy("model", snapshot.model),
            ema=copy("ema", snapshot.ema),
            state=TrainingState(copy("state", snapshot.state.tensors), snapshot.state.json_text),
        )

    def _buffer(self, key: str, tensor: Tensor) -> Tensor:
        """A copy in the memory of the previous copy; allocating new memory would take three times as long."""
        kept = self._buffers.get(key)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = self._buffers[key] = tensor.to("cpu", copy=True)
        else:
            kept.copy_(tensor)
        return kept

    def _write(self, snapshot: Snapshot) -> None:
        run, path, began = self.components.run, snapshot.path, time.perf_counter()
        if self.lock is not None:
            self.lock.renew()
        try:
            self._write_files(snapshot)
        except (OSError, CheckpointError) as error:
            failure = write_failed(path, error) if isinstance(error, OSError) else error
            first = f"{failure.hint}, and " if failure.hint else ""
            whole = list(checkpoints(run.save_model).values())
            then = (
                f"resume with -train_from auto: {whole[-1]} is complete"
                if whole
                else "start the run again: it has no checkpoint yet"
            )
            raise CheckpointError(failure.message, hint=f"{first}{then}") from error
        if not self.components.world.is_main:
            return
        logger.info("Saved checkpoint %s in %.1f s.", path, time.perf_counter() - began)
        best = [checkpoint_path(run.save_model, snapshot.best_step)] if snapshot.best_step else []
        prune(run.save_model, keep=run.keep_checkpoint, newest=snapshot.step, protected=[*self._protected, *best])

    def _write_files(self, snapshot: Snapshot) -> None:
        path, state, world, needed = snapshot.path, snapshot.state, self._writers, snapshot.nbytes
        if world is not None:
            needed = sum(record["nbytes"] for record in world.gather({"nbytes": needed}))
        # The averages first: an existing checkpoint can then always be resumed exactly.
        folders = {} if self.components.ema is None else {ema_path(path): snapshot.ema}
        folders[path] = snapshot.model
        for place, tensors in folders.items():
            opened = functools.partial(self._opened, place, snapshot, needed)
            needed = 0  # it is checked before anything is written
            if world is not None:
                write_together(world, opened, {".": tensors, STATE_DIRECTORY: state.tensors if place == path else {}})
                continue
            with opened() as writer:
                for name, part in tensors.items():
                    writer.add(name, part.tensor)
                if place == path:
                    write_optimizer(writer.directory / STATE_DIRECTORY, state)

    @contextmanager
    def _opened(self, path: Path, snapshot: Snapshot, needed: int) -> Iterator[CheckpointWriter]:
        """A writer of the snapshot, or of its averages, with everything but the tensors, if `needed` bytes are free."""
        check_space(snapshot.path, int(1.1 * needed) + _SMALL_FILES)
        with CheckpointWriter(path, saved_config(self.setup, self.components), overwrite=True) as writer:
            writer.add_text(PROVENANCE_FILE, snapshot.provenance)
            write_text_side(writer, self.setup.start)
            if path == snapshot.path:
                write_state_text(writer.directory / STATE_DIRECTORY, snapshot.state)
            yield writer

    @property
    def _protected(self) -> list[Path]:
        """Checkpoints that the run needs to be resumed. The one that it was resumed from counts as its own."""
        bases = [
            c.path for c in (self.setup.start.weights, self.setup.start.adapter) if c and c.path not in self.written
        ]
        return [*bases, *self.setup.companions]
