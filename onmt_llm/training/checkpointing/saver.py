"""`CheckpointSaver`: write weights or adapter, tokeniser files and training state, all at once or not at all.

The state is copied while the loop waits, and written by a thread while training continues; one checkpoint at a time.
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
from onmt_llm.checkpoint.provenance import PROVENANCE_FILE, provenance_text
from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, ExpansionSpec
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.nn.block_expansion import twin_state
from onmt_llm.nn.lora.model import lora_state
from onmt_llm.output_checks import check_space
from onmt_llm.text.codec import FEATURE_VOCAB_FILE, SRC_VOCAB_FILE, VOCAB_FILE
from onmt_llm.training.checkpointing.background import BackgroundTask, copy_fits
from onmt_llm.training.checkpointing.provenance import RunHistory
from onmt_llm.training.checkpointing.resume import run_options
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.process.rng import rng_state
from onmt_llm.training.process.shards import gathered
from onmt_llm.training.run_folder import STATE_DIRECTORY, RunLock, checkpoint_path, ema_path, prune
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.state import Progress, SavedState, TrainingState, collect_state, write_state

# Bytes besides the tensors: vocabulary, tokeniser, random generators, headers.
_SMALL_FILES = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """The content of one checkpoint.

    Attributes:
        path: Its directory.
        step: Updates done.
        best_step: Step whose checkpoint is kept as the best; 0 = none.
        model: Weights, adapter or twins.
        ema: Their running averages, if any.
        state: The training state.
        provenance: Content of `provenance.json`.
    """

    path: Path
    step: int
    best_step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: TrainingState
    provenance: str

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All tensors."""
        for part in (self.model, self.ema, self.state.tensors):
            yield from part.values()


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

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):
            try:
                self._task.wait()
            except Exception as error:
                logger.error("%s", error)

    def __call__(self, progress: Progress) -> None:
        run, world = self.components.run, self.components.world
        if run.keep_checkpoint == 0:
            return
        path = checkpoint_path(run.save_model, progress.step)
        if path.resolve() in map(Path.resolve, self._protected):
            logger.warning("No checkpoint of step %d is saved: the run needs the one at %s.", progress.step, path)
            return
        ranks = world.gather({"rng": rng_state(world.device), "data": self.pipeline.state_dict()})
        snapshot = self._snapshot(path, progress, ranks)
        if world.is_main:
            size = sum(tensor.nbytes for tensor in snapshot.tensors)
            if self.setup.config.safety.save_async and (self._buffers or copy_fits(size)):
                self._task.wait()
                copied = self._copied(snapshot)
                self._task.start(functools.partial(self._write, copied, size))
            else:
                self._task.wait()
                self._write(snapshot, size)
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
        """The content of the checkpoint: the tensors themselves, not copies, unless they are sharded. Ranks other than
        the main one take part in collecting those, and get nothing."""
        ema, keep = {}, self.components.world.is_main
        if self.components.ema is not None:
            with self.components.ema.in_place():
                ema = dict(gathered(self._tensors(), keep=keep))
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
                options=run_options(self.setup.config),
            ),
            keep=keep,
        )
        model = dict(gathered(self._tensors(), keep=keep))
        best = progress.best_step if self.components.save_best else 0
        provenance = provenance_text(self._history.at(progress, self.components, self.seed))
        return Snapshot(path, progress.step, best, model, ema, state, provenance)

    @functools.cached_property
    def _history(self) -> RunHistory:
        return RunHistory.open(self.setup)

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with copies in CPU memory of everything that training changes."""
        # What was collected from the ranks is a copy already; the counts of steps are not.
        collected = self.components.trainee.is_sharded
        parameters = () if collected else self.components.model.parameters()
        fixed = {p.data_ptr() for p in parameters if not p.requires_grad}

        def copy(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: tensor
                if (tensor.data_ptr() in fixed or (collected and tensor.ndim > 0))
                else self._buffer(f"{part} {name}", tensor)
                for name, tensor in tensors.items()
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

    def _write(self, snapshot: Snapshot, size: int) -> None:
        run, path, began = self.components.run, snapshot.path, time.perf_counter()
        if self.lock is not None:
            self.lock.renew()
        try:
            check_space(path, int(1.1 * size) + _SMALL_FILES)
            # The averages first: an existing checkpoint can then always be resumed exactly.
            if snapshot.ema:
                with self._writer(ema_path(path)) as writer:
                    self._write_model(writer, snapshot.ema, snapshot.provenance)
            with self._writer(path) as writer:
                self._write_model(writer, snapshot.model, snapshot.provenance)
                write_state(writer.directory / STATE_DIRECTORY, snapshot.state)
        except (OSError, CheckpointError) as error:
            failure = write_failed(path, error) if isinstance(error, OSError) else error
            first = f"{failure.hint}, and " if failure.hint else ""
            raise CheckpointError(
                failure.message, hint=f"{first}resume with -train_from auto: the checkpoints before it are complete"
            ) from error
        logger.info("Saved checkpoint %s in %.1f s.", path, time.perf_counter() - began)
        best = [checkpoint_path(run.save_model, snapshot.best_step)] if snapshot.best_step else []
        prune(run.save_model, keep=run.keep_checkpoint, newest=snapshot.step, protected=[*self._protected, *best])

    @property
    def _protected(self) -> list[Path]:
        """Checkpoints that the run needs to be resumed. The one that it was resumed from counts as its own."""
        bases = [
            c.path for c in (self.setup.start.weights, self.setup.start.adapter) if c and c.path not in self.written
        ]
        return [*bases, *self.setup.companions]

    @property
    def _spec(self) -> AdapterSpec | ExpansionSpec | None:
        """Settings of the adapter or of the twins, with the identity of their base; None = the whole model is saved."""
        spec, base = self.setup.layers.beside_base, self.setup.start.weights
        if spec is None:
            return None
        assert base is not None
        return spec.model_copy(update={"base": str(base.path.resolve()), "base_fingerprint": base.fingerprint})

    def _writer(self, path: Path) -> CheckpointWriter:
        return CheckpointWriter(path, self._config(), overwrite=True)

    def _write_model(self, writer: CheckpointWriter, tensors: dict[str, Tensor], provenance: str) -> None:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.add_text(PROVENANCE_FILE, provenance)
        start = self.setup.start
        codec = start.codec
        features = {FEATURE_VOCAB_FILE.format(i=i): vocab for i, vocab in enumerate(codec.feature_vocabs)}
        written = {VOCAB_FILE, SRC_VOCAB_FILE, *features}
        for name, content in start.text.files.items():
            if name not in written:
                (writer.directory / name).write_bytes(content)
        codec.vocab.write(writer.directory / VOCAB_FILE)
        if not codec.shares_vocab:
            codec.src_vocab.write(writer.directory / SRC_VOCAB_FILE)
        for name, vocab in features.items():
            vocab.write(writer.directory / name)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        spec = self._spec
        if spec is not None:
            state = lora_state if isinstance(spec, AdapterSpec) else twin_state
            yield from state(self.components.model).items()
        else:
            for name, parameter in self.components.model.named_parameters():
                yield name, parameter.detach()

    def _config(self) -> CheckpointConfig:
        config, guide = self.setup.start.config, self.components.objective.alignment
        if guide is not None:
            update = {
                "alignment_layer": guide.layer,
                "alignment_heads": guide.heads,
                "full_context_alignment": guide.full_context,
            }
            config = config.model_copy(update=update)
        spec = self._spec
        if spec is None:
            # Trained weights are stored in their own type, so that a resumed run is exact.
            dtype = "bf16" if self.components.performance.pure_bf16 else "fp32"
            return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
        return config.model_copy(update={"adapter" if isinstance(spec, AdapterSpec) else "expansion": spec})
