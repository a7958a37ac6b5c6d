"""`provenance.json`: the training runs that a model went through, for people and for its model card.

Training writes the file beside the weights; merging, converting, exporting and releasing copy it. It names corpora and
base models, but no paths.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from onmt_llm.atomic import write_text
from onmt_llm.config.numbers import Count, CountOrZero, FileSize, Positive, Score
from onmt_llm.config.section import Section
from onmt_llm.errors import CheckpointError

PROVENANCE_FILE = "provenance.json"
PROVENANCE_VERSION = 2


class CorpusFile(Section):
    """A file of a corpus: enough to recognise it."""

    name: str
    """Name without its directory."""
    bytes: FileSize
    sample: str
    """SHA-256 of its beginning, middle and end (`checksums.sha256_of_sample`)."""


class UsedCorpus(Section):
    """A corpus that a run trained on."""

    name: str
    weight: Positive
    """Sampling weight."""
    files: list[CorpusFile] = Field(default_factory=list)
    """Its files of text; of a corpus that is read as tokens, the index, which has the checksums of its shards."""
    sources: list[str] = Field(default_factory=list)
    """Datasets of the Hub that the files belong to, each with its commit: `hf://datasets/OWNER/NAME@COMMIT`."""


class TrainingRun(Section):
    """One training run, from the model that it started from to the checkpoint."""

    base: str = ""
    """Origin of the model that the run started from; empty = new weights."""
    base_fingerprint: str = ""
    """`Checkpoint.fingerprint` of that model."""
    step: CountOrZero = 0
    """Updates done."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Training options by name: the main ones, and those that differ from their defaults."""
    corpora: list[UsedCorpus] = Field(default_factory=list)
    validated: CountOrZero = 0
    """Step of the last validation; 0 = none."""
    scores: dict[str, Score] = Field(default_factory=dict)
    """Results of that validation, by metric."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of Python and of packages; `commit` is that of onmt_llm, if it ran from a checkout."""


class Provenance(Section):
    """Content of `provenance.json`."""

    version: Count = PROVENANCE_VERSION
    runs: list[TrainingRun] = Field(default_factory=list)
    """Training runs, the first one first."""


def read_provenance(directory: Path) -> Provenance:
    """What is known of the training of a model; without the file, nothing is.

    Args:
        directory: A checkpoint, a release or an export.

    Raises:
        CheckpointError: The file cannot be read, or was written by a newer program.
    """
    file = directory / PROVENANCE_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["version"]
        if isinstance(version, int) and version > PROVENANCE_VERSION:
            raise CheckpointError(
                f"{file} must have a version of at most {PROVENANCE_VERSION}, but has {version}.",
                hint="update onmt_llm",
            )
        return Provenance.model_validate(content)
    except FileNotFoundError:
        return Provenance()
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise CheckpointError(f"{file} must be a record of training runs, but is not ({error}).") from error


def provenance_text(provenance: Provenance) -> str:
    """The content of `provenance.json`."""
    return json.dumps(provenance.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def copy_provenance(source: Path, target: Path) -> None:
    """Copy the file from one model directory to another, if there is one.

    Raises:
        CheckpointError: As `read_provenance`.
    """
    provenance = read_provenance(source)
    if provenance.runs:
        write_text(target / PROVENANCE_FILE, provenance_text(provenance))
