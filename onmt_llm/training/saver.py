"""Writing the checkpoints of a run: weights or adapter, text side and training state, all at once or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import CheckpointError, DataError
from onmt_llm.log import logger
from onmt_llm.nn.lora import lora_state
from onmt_llm.text.codec import FEATURE_VOCAB_FILE
from onmt_llm.training.dist import World
from onmt_llm.training.loop import Job
from onmt_llm.training.start import SRC_VOCAB_FILE, VOCAB_FILE, Start
from onmt_llm.training.state import (
    STATE_DIRECTORY,
    Progress,
    SavedState,
    average_path,
    checkpoint_path,
    prune,
    rng_state,
    set_rng_state,
    write_state,
)


def with_base(spec: AdapterSpec, weights: Checkpoint, world: World) -> AdapterSpec:
    """The adapter's settings with the identity of its base. Rank 0 computes it; the others find it cached."""
    if world.is_main:
        logger.info("Identifying the base %s ...", weights.path)
        weights.fingerprint  # noqa: B018 (cached beside the weights)
    world.barrier()
    return spec.model_copy(update={"base": str(weights.path.resolve()), "base_fingerprint": weights.fingerprint})


@dataclass
class Saver:
    """Writes `<save_model>_step_<N>` when called, and removes older ones as `keep_checkpoint` says.

    Beside it goes `..._ema` with the averaged weights, where there are any.

    Attributes:
        job: Model, optimiser and settings.
        start: Text side and base of the run.
        spec: The adapter's settings with its base; None = the whole model is written.
        pipeline: Its position is saved.
        seed: Seed of the run.
        last: The newest checkpoint of this process.
    """

    job: Job
    start: Start
    spec: AdapterSpec | None
    pipeline: Pipeline
    seed: int
    last: Path | None = field(default=None)

    def __call__(self, progress: Progress) -> None:
        run, world = self.job.run, self.job.world
        if run.keep_checkpoint == 0:
            return
        ranks = world.gather({"rng": rng_state(world.device), "data": self.pipeline.state_dict()})
        path = checkpoint_path(run.save_model, progress.step)
        if world.is_main:
            try:
                # The average first: a checkpoint that is there can always be resumed as it was.
                if self.job.average is not None:
                    with self.job.average.in_place(), self._writer(average_path(path)) as writer:
                        self._write_model(writer)
                with self._writer(path) as writer:
                    self._write_model(writer)
                    self._write_state(writer, progress, ranks)
            except OSError as error:
                free = shutil.disk_usage(path.parent).free
                raise CheckpointError(
                    f"Checkpoint {path} cannot be written: {error}; {free:,} bytes are free there.",
                    hint="the checkpoints before it are complete: make room and continue with -train_from",
                ) from error
            logger.info("Saved checkpoint %s.", path)
            bases = [c.path for c in (self.start.weights, self.start.adapter) if c is not None]
            prune(run.save_model, keep=run.keep_checkpoint, newest=progress.step, protected=bases)
        world.barrier()
        self.last = path

    def _writer(self, path: Path) -> CheckpointWriter:
        return CheckpointWriter(path, self._config(), overwrite=True)

    def _write_model(self, writer: CheckpointWriter) -> None:
        for name, tensor in self._tensors():
            writer.add(name, tensor)
        features = {FEATURE_VOCAB_FILE.format(i=i): vocab for i, vocab in enumerate(self.start.feature_vocabs)}
        written = {VOCAB_FILE, SRC_VOCAB_FILE, *features}
        for name, file in self.start.files.items():
            if name not in written:
                writer.add_file(file, name)
        self.start.vocab.write(writer.directory / VOCAB_FILE)
        if self.start.src_vocab is not None:
            self.start.src_vocab.write(writer.directory / SRC_VOCAB_FILE)
        for name, vocab in features.items():
            vocab.write(writer.directory / name)

    def _write_state(self, writer: CheckpointWriter, progress: Progress, ranks: list[dict[str, Any]]) -> None:
        write_state(
            writer.directory / STATE_DIRECTORY,
            self.job.model,
            self.job.optimizer,
            name=self.job.optim.optim,
            progress=progress,
            settings=self.job.optim.model_dump(mode="json"),
            seed=self.seed,
            ranks=ranks,
        )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self.spec is not None:
            yield from lora_state(self.job.model).items()
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
            # What is trained is float32, whatever it was computed in: only so is a resumed run exact.
            return config.model_copy(update={"model": config.model.model_copy(update={"dtype": "fp32"})})
        return config.model_copy(update={"adapter": self.spec})


def restore(saved: SavedState, pipeline: Pipeline, world: World) -> None:
    """Put random generators and data position of this rank back to where they were saved.

    Another number of ranks goes on with the very same data, dealt anew; their random generators are those of a new run.
    """
    fresh = pipeline.state_dict()
    try:
        pipeline.load_state_dict(*(rank["data"] for rank in saved.ranks))
    except DataError as error:
        # Going on with other corpora is a wish like any other; that the position is lost has to be said.
        logger.warning("The data begins anew: %s", error.message)
        pipeline.load_state_dict(fresh)
    if len(saved.ranks) != world.size:
        logger.info("The run was saved by %d processes and goes on with %d.", len(saved.ranks), world.size)
        return
    set_rng_state(saved.ranks[world.rank]["rng"], world.device)
