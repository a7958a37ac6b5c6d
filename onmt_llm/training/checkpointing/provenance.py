"""The record of a training run that its checkpoints keep: see `checkpoint.provenance`."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from onmt_llm.checkpoint.provenance import CorpusFile, Provenance, TrainingRun, UsedCorpus, read_provenance
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.checksums import sha256_of_sample
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.hub_path import source_of
from onmt_llm.data.spec import split_corpora
from onmt_llm.data.token_shards.fingerprint import text_files
from onmt_llm.log import logger
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.setup.run_setup import RunSetup
from onmt_llm.training.state import Progress
from onmt_llm.version import __version__

_MAIN = (
    *("train_steps", "accum_count", "optim", "learning_rate", "batch_size", "batch_type", "model_dtype"),
    *("dropout", "label_smoothing", "weight_decay", "max_grad_norm"),
)
"""Options that are recorded even at their defaults."""
_NOT_OF_TRAINING = {"save_model", "keep_checkpoint", "save_checkpoint_steps", "seed", "num_workers", "worker_type"}


@dataclass(frozen=True)
class RunHistory:
    """What a model has been through when a run begins.

    Attributes:
        setup: What the run was set up from.
        before: The runs before this one.
        begun: The record of this one as it begins: its base, corpora and versions.
    """

    setup: RunSetup
    before: list[TrainingRun]
    begun: TrainingRun

    @classmethod
    def open(cls, setup: RunSetup) -> RunHistory:
        """Read the record of the model that a run starts from, and sample the run's corpora."""
        start = setup.start.adapter or setup.start.weights
        before = [] if start is None else read_provenance(start.path).runs
        name = "" if start is None else _name(start, before)
        if setup.saved is not None:  # this run, resumed
            *before, own = before or [TrainingRun(base=name)]
            base = (own.base, own.base_fingerprint)
        else:
            base = (name, "" if start is None else start.fingerprint)
        train, _ = split_corpora(setup.config.corpora.data)
        begun = TrainingRun(
            base=base[0],
            base_fingerprint=base[1],
            corpora=[_corpus(name, corpus) for name, corpus in train.items()],
            versions={
                "onmt_llm": __version__,
                "torch": version("torch"),
                "python": platform.python_version(),
                **_commit(),
            },
        )
        return cls(setup, before, begun)

    def at(self, progress: Progress, components: TrainingComponents, seed: int) -> Provenance:
        """The record at a checkpoint of the run."""
        update = {
            "step": progress.step,
            "settings": {**_settings(self.setup, components), "seed": seed},
            "validated": progress.validated if progress.scores else 0,
            "scores": {name: score for name, score in progress.scores.items() if math.isfinite(score)},
        }
        return Provenance(runs=[*self.before, self.begun.model_copy(update=update)])


def _name(base: Checkpoint, runs: Sequence[TrainingRun]) -> str:
    """Where a base comes from, if it was not trained here; otherwise the name of its folder."""
    return base.path.name if runs or not base.config.source else base.config.source


def _commit() -> dict[str, str]:
    """The commit of a checkout of the package, with `-dirty` if files have changed since."""
    folder = Path(__file__).parents[3]
    if not (folder / ".git").exists():
        return {}
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("The commit of %s is unknown: %s", folder, error)
        return {}
    return {"commit": done.stdout.strip()}


def _corpus(name: str, corpus: CorpusConfig) -> UsedCorpus:
    paths = [*text_files(corpus), *_token_index(corpus)]
    files = [
        CorpusFile(name=path.name, bytes=path.stat().st_size, sample=sha256_of_sample(path))
        for path in paths
        if path.is_file()  # a pipe can be read only once
    ]
    sources = sorted({source for path in paths if (source := source_of(path))})
    return UsedCorpus(name=name, weight=corpus.weight, files=files, sources=sources)


def _token_index(corpus: CorpusConfig) -> list[Path]:
    """The index of its shards of tokens, which has their checksums."""
    return [] if corpus.path_tokens is None else [Path(corpus.path_tokens) / "index.json"]


def _settings(setup: RunSetup, components: TrainingComponents) -> dict[str, Any]:
    """Options of the training by name: the main ones, those that differ from their defaults, and the adapter's."""
    config = setup.config
    sections = (
        *(components.run, components.optim, components.regularization, components.performance),
        *(config.batching, config.loss, config.preference, config.expansion, config.quantization),
    )
    found: dict[str, Any] = {}
    for section in sections:
        values, changed = section.model_dump(mode="json"), section.model_dump(exclude_defaults=True)
        names = (name for name in values if name in _MAIN or name in changed)
        found |= {name: _without_folder(values[name]) for name in names if name not in _NOT_OF_TRAINING}
    if config.corpora.objective != "sft":
        found["objective"] = config.corpora.objective
    return found | dict(_adapter(setup.layers.lora))


def _adapter(spec: AdapterSpec | None) -> Iterator[tuple[str, Any]]:
    if spec is None:
        return
    yield from {
        "lora_rank": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "lora_layers": spec.layers,
    }.items()
    others = {"use_dora": spec.dora, "use_rslora": spec.rslora, "lora_embedding": spec.embedding}
    yield from ((name, True) for name, value in others.items() if value)
    if spec.init != "default":
        yield "lora_init", spec.init


def _without_folder(value: Any) -> Any:
    """A path as its last name; anything else as it is."""
    return PurePath(value).name if isinstance(value, str) and "/" in value else value
