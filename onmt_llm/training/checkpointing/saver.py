"""Writing the checkpoints of a run: weights or adapter, text side and training state, all at once or not at all.

The state is copied while the loop waits, and written by a thread while training goes on; at most one is being written.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from onmt_llm.atomic import write_failed
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, ExpansionSpec
from onmt_llm.config.training.safety import SafetyConfig
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import CheckpointError
from onmt_llm.log import log_once, logger
from onmt_llm.nn.block_expansion import twin_state
from onmt_llm.nn.device import available_memory
from onmt_llm.nn.lora.model import lora_state
from onmt_llm.output_checks import check_space
from onmt_llm.text.codec import FEATURE_VOCAB_FILE
from onmt_llm.training.checkpointing.background import Background
from onmt_llm.training.loop import Job
from onmt_llm.training.run_folder import RunLock, average_path, checkpoint_path, prune
from onmt_llm.training.setup.start import SRC_VOCAB_FILE, VOCAB_FILE, Start
from onmt_llm.training.state import STATE_DIRECTORY, Progress, TrainState, collect_state, rng_state, write_state

# Beside the tensors: vocabulary, tokeniser, random generators, room for headers.
_SMALL_FILES = 1 << 20


def with_base(spec: AdapterSpec | ExpansionSpec, weights: Checkpoint) -> AdapterSpec | ExpansionSpec:
    """The settings with the identity of the base."""
    return spec.model_copy(update={"base": str(weights.path.resolve()), "base_fingerprint": weights.fingerprint})


@dataclass(frozen=True)
class Snapshot:
    """What one checkpoint will hold.

    Attributes:
        path: Where it goes.
        step: Updates done.
        best_step: Step whose checkpoint is to stay; 0 = none.
        model: Weights, adapter or twins.
        average: The averaged ones, where there are any.
        state: The training state.
    """

    path: Path
    step: int
    best_step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    state: TrainState

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All of it."""
        for part in (self.model, self.average, self.state.tensors):
            yield from part.values()


@dataclass
class Saver:
    """Writes `<save_model>_step_<N>` when called, and removes older ones as `keep_checkpoint` says.

    Beside it goes `..._ema` with the averaged weights, where there are any. Leaving the context waits for what is being
    written, unless the run is to stop at once.

    Attributes:
        job: Model, optimiser and settings.
        start: Text side and base of the run.
        spec: The adapter's or twins' settings with their base; None = the whole model is written.
        pipeline: Its position is saved.
        seed: Seed of the run.
        options: What the run was told, to be compared with when it goes on.
        safety: Whether training goes on while a checkpoint is written, and whether the best one stays.
        needed: Other checkpoints that the run begins with, whenever it is resumed: never removed.
        lock: Of the run's folder; rank 0's.
        written: Checkpoints of this run, in order; those that were removed since included.
    """

    job: Job
    start: Start
    spec: AdapterSpec | ExpansionSpec | None
    pipeline: Pipeline
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    needed: list[Path] = field(default_factory=list)
    lock: RunLock | None = None
    written: list[Path] = field(default_factory=list)
    _background: Background = field(default_factory=Background)
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):
            try:
                self._background.wait()
            except Exception as error:
                logger.error("%s", error)

    def __call__(self, progress: Progress) -> None:
        run, world = self.job.run, self.job.world
        if run.keep_checkpoint == 0:
            return
        path = checkpoint_path(run.save_model, progress.step)
        if path.resolve() in map(Path.resolve, self._protected):
            logger.warning("There is no checkpoint of step %d: the run needs what is at %s.", progress.step, path)
            return
        ranks = world.gather({"rng": rng_state(world.device), "data": self.pipeline.state_dict()})
        if world.is_main:
            snapshot = self._take(path, progress, ranks)
            needed = sum(tensor.nbytes for tensor in snapshot.tensors)
            if self.safety.save_async and (self._buffers or _fits(needed)):
                self._background.wait()
                copied = self._copied(snapshot)
                self._background.start(functools.partial(self._write, copied, needed))
            else:
                self._background.wait()
                self._write(snapshot, needed)
        self.written.append(path)

    def check(self) -> None:
        """Raise what went wrong in the thread since the last call."""
        self._background.check()

    def wait(self) -> None:
        """Wait until everything is written, on all ranks."""
        self._background.wait()
        self.job.world.barrier()

    @property
    def last(self) -> Path | None:
        """The newest checkpoint."""
        return self.written[-1] if self.written else None

    def _take(self, path: Path, progress: Progress, ranks: list[dict[str, Any]]) -> Snapshot:
        """What the checkpoint will hold: the tensors themselves."""
        average = {}
        if self.job.average is not None:
            with self.job.average.in_place():
                average = dict(self._tensors())
        state = collect_state(
            self.job.model,
            self.job.optimizer,
            name=self.job.optimizer_name,
            progress=progress,
            settings=self.job.optim.model_dump(mode="json"),
            seed=self.seed,
            ranks=ranks,
            options=self.options,
        )
        best = progress.best_step if self.safety.save_best else 0
        return Snapshot(path, progress.step, best, dict(self._tensors()), average, state)

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with copies, in CPU memory, of all that training changes."""
        fixed = {p.data_ptr() for p in self.job.model.parameters() if not p.requires_grad}

        def copy(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: tensor if tensor.data_ptr() in fixed else self._buffer(f"{part} {name}", tensor)
                for name, tensor in tensors.items()
            }

        return replace(
            snapshot,
            model=copy("model", snapshot.model),
            average=copy("average", snapshot.average),
            state=TrainState(copy("state", snapshot.state.tensors), snapshot.state.text),
        )

    def _buffer(self, key: str, tensor: Tensor) -> Tensor:
        """A copy, in the memory of the last one: new memory would cost three times the time of the copy."""
        kept = self._buffers.get(key)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = self._buffers[key] = tensor.to("cpu", copy=True)
        else:
            kept.copy_(tensor)
        return kept

    def _write(self, snapshot: Snapshot, needed: int) -> None:
        run, path, began = self.job.run, snapshot.path, time.perf_counter()
        if self.lock is not None:
            self.lock.renew()
        try:
            check_space(path, int(1.1 * needed) + _SMALL_FILES)
            # The average first: a checkpoint that is there can always be resumed as it was.
            if snapshot.average:
                with self._writer(average_path(path)) as writer:
                    self._write_model(writer, snapshot.average)
            with self._writer(path) as writer:
                self._write_model(writer, snapshot.model)
                write_state(writer.directory / STATE_DIRECTORY, snapshot.state)
        except (OSError, CheckpointError) as error:
            told = write_failed(path, error) if isinstance(error, OSError) else error
            first = f"{told.hint}, and " if told.hint else ""
            raise CheckpointError(
                told.message, hint=f"{first}resume with -train_from auto: the checkpoints before it are complete"
            ) from error
        logger.info("Saved checkpoint %s in %.1f s.", path, time.perf_counter() - began)
        best = [checkpoint_path(run.save_model, snapshot.best_step)] if snapshot.best_step else []
        prune(run.save_model, keep=run.keep_checkpoint, newest=snapshot.step, protected=[*self._protected, *best])

    @property
    def _protected(self) -> list[Path]:
        """Checkpoints that the run needs when it is resumed. One that it was resumed from is like those it writes."""
        bases = [c.path for c in (self.start.weights, self.start.adapter) if c and c.path not in self.written]
        return [*bases, *self.needed]

    def _writer(self, path: Path) -> CheckpointWriter:
        return CheckpointWriter(path, self._config(), overwrite=True)

    def _write_model(self, writer: CheckpointWriter, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        features = {FEATURE_VOCAB_FILE.format(i=i): vocab for i, vocab in enumerate(self.start.feature_vocabs)}
        written = {VOCAB_FILE, SRC_VOCAB_FILE, *features}
        for name, content in self.start.files.items():
            if name not in written:
                (writer.directory / name).write_bytes(content)
        self.start.vocab.write(writer.directory / VOCAB_FILE)
        if self.start.src_vocab is not None:
            self.start.src_vocab.write(writer.directory / SRC_VOCAB_FILE)
        for name, vocab in features.items():
            vocab.write(writer.directory / name)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self.spec is not None:
            state = lora_state if isinstance(self.spec, AdapterSpec) else twin_state
            yield from state(self.job.model).items()
        else:
            for name, parameter in self.job.model.named_parameters():
                yield name, parameter.detach()

    def _config(self) -> CheckpointConfig:
        config, guide = self.start.config, self.job.objective.alignment
        if guide is not None:
            update = {
                "alignment_layer": guide.layer,
                "alignment_heads": guide.heads,
                "full_context_alignment": guide.full_context,
            }
            config = config.model_copy(update=update)
        if self.spec is None:
            # What is trained is stored as it is, whatever it was computed in: only so is a resumed run exact.
            dtype = "bf16" if self.job.performance.pure_bf16 else "fp32"
            return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
        return config.model_copy(update={"adapter" if isinstance(self.spec, AdapterSpec) else "expansion": self.spec})


def _fits(needed: int) -> bool:
    """Whether a copy of so many bytes may be made in memory."""
    available = available_memory()
    if available is None or needed < 0.8 * available:
        return True
    log_once(
        f"A copy of what is saved takes {needed:,} bytes, too much of the {available:,} that are available: "
        "training waits while a checkpoint is written."
    )
    return False
