"""The checkpoint directory: what it holds, reading it lazily, writing it so that it is complete or not there at all.

config.yaml                       `CheckpointConfig`
model.safetensors                 weights, or model-00001-of-00003.safetensors ... with model.safetensors.index.json
adapter.safetensors               LoRA weights; alone (an adapter) or beside the weights of its base (a concatenation);
                                  or the twins of blocks (an expansion), alone
vocab.txt, tokenizer files, chat_template.jinja
manifest.json                     size and SHA-256 of every file, written last
fingerprint.json                  SHA-256 of every tensor, a cache of `Checkpoint.fingerprint`
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from onmt_llm.checkpoint.atomic import AtomicDirectory
from onmt_llm.checkpoint.manifest import MANIFEST_FILE, damage, write_manifest
from onmt_llm.checkpoint.safetensors_io import (
    INDEX_FILE,
    WEIGHTS_FILE,
    SafetensorsSet,
    ShardedWriter,
    ShardWriter,
    open_index,
    tensor_digest,
)
from onmt_llm.config.checkpoint import CONFIG_FILE, CheckpointConfig, config_text, read_config
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec

ADAPTER_FILE = "adapter.safetensors"
FINGERPRINT_FILE = "fingerprint.json"
_OWN_FILES = re.compile(
    r"\..*|config\.yaml|(manifest|fingerprint)\.json|adapter\.safetensors|model.*\.safetensors(\.index\.json)?"
)


def resolve_path(path: str | Path) -> Path:
    """The checkpoint directory that `path` names; a trailing `.pt` may be there or not.

    OpenNMT-py's documents write the same checkpoint with and without `.pt`, so both spellings find it.

    Raises:
        CheckpointError: There is no such directory, or it is another kind of file.
    """
    path = Path(path)
    twin = path.with_suffix("") if path.suffix == ".pt" else Path(f"{path}.pt")
    for candidate in (path, twin):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    for candidate in (path, twin):
        if candidate.is_file():
            raise CheckpointError(
                f"A checkpoint must be a directory that holds {CONFIG_FILE}, but {candidate} is a file.",
                hint=f"convert it first: onmt_llm_convert -from auto -model_dir {candidate} -output NEW_DIRECTORY",
            )
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"A checkpoint must hold {CONFIG_FILE}, but {path} is an adapter of peft.",
            hint=f"onmt_llm_lora -action import -base_model BASE -lora_weights {path} -output NEW_DIRECTORY",
        )
    if path.is_dir():
        raise CheckpointError(
            f"A checkpoint must hold {CONFIG_FILE}, but {path} does not.",
            hint=f"if it holds another toolkit's model: onmt_llm_convert -model_dir {path} -output NEW_DIRECTORY",
        )
    if re.match("[a-z0-9]+:/", str(path)):
        address = str(path).replace(":/", "://", 1)  # as it was before it was taken for a path
        raise CheckpointError(
            f"A checkpoint must be a folder on this machine, but {address} is an address.", hint="download it first"
        )
    raise CheckpointError(f"There is no checkpoint at {path}.")


class Checkpoint:
    """A checkpoint directory, opened for reading. Tensors are read one at a time, when asked for.

    Attributes:
        path: The directory.
        config: Content of `config.yaml`.
    """

    def __init__(
        self, path: Path, config: CheckpointConfig, weights: SafetensorsSet | None, adapter: SafetensorsSet | None
    ):
        self.path = path
        self.config = config
        self._weights = weights
        self._adapter = adapter

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open the checkpoint at `path` (with or without a trailing `.pt`).

        Raises:
            CheckpointError: It is missing, of a newer format, or its files are damaged or incomplete.
        """
        directory = resolve_path(path)
        config = read_config(directory)
        weights = _weight_files(directory)
        adapter = SafetensorsSet(directory, [ADAPTER_FILE]) if (directory / ADAPTER_FILE).exists() else None
        if weights is None and adapter is None:
            raise CheckpointError(f"{directory} holds neither {WEIGHTS_FILE} (or {INDEX_FILE}) nor {ADAPTER_FILE}.")
        if adapter is not None and config.addition is None:
            raise CheckpointError(
                f"{directory} holds {ADAPTER_FILE}, but its {CONFIG_FILE} has neither `adapter` nor `expansion`."
            )
        return cls(directory, config, weights, adapter)

    @property
    def is_adapter(self) -> bool:
        """Only LoRA weights, or twins, are here; the base is elsewhere."""
        return self._weights is None

    @property
    def has_adapter(self) -> bool:
        """LoRA weights or twins are here, alone or beside their base."""
        return self._adapter is not None

    def names(self) -> list[str]:
        """Names of all tensors: the model's, then the adapter's."""
        return [name for part in self._parts() for name in part.names()]

    def model_names(self) -> list[str]:
        return self._weights.names() if self._weights else []

    def adapter_names(self) -> list[str]:
        return self._adapter.names() if self._adapter else []

    def shape(self, name: str) -> tuple[int, ...]:
        return self._part_of(name).shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._part_of(name).dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, read from disk into memory of its own."""
        return self._part_of(name).tensor(name)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors, one at a time; the caller decides how many it keeps."""
        for name in self.names():
            yield name, self.tensor(name)

    def files(self) -> list[Path]:
        """The files that are not weights or configuration: vocabulary, tokeniser, template."""
        return sorted(file for file in self.path.iterdir() if file.is_file() and not _OWN_FILES.fullmatch(file.name))

    def codec(self) -> Codec:
        """Vocabulary, tokeniser and template of this checkpoint."""
        from onmt_llm.text.codec import Codec

        return Codec.open(self.path)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, types and content of the tensors: the identity of a base.

        The adapter's tensors count only in an adapter without its base. The result is cached beside the weights.
        """
        record = self._read_record()
        if record is None or record["files"] != self._stamps():
            digests = {name: tensor_digest(name, self.tensor(name)) for name in self.names()}
            record = _record(self.path, self._files(), digests, self._identity_names())
            self._cache(record)
        return str(record["fingerprint"])

    def damaged(self) -> list[str]:
        """Tensors whose content is not what was written, and the files that differ; reads everything.

        Raises:
            CheckpointError: Neither digests nor a manifest were recorded for this checkpoint.
        """
        record, listed = self._read_record(), (self.path / MANIFEST_FILE).exists()
        if record is None and not listed:
            raise CheckpointError(f"{self.path} has neither {MANIFEST_FILE} nor {FINGERPRINT_FILE} to verify against.")
        tensors = [] if record is None else self._damaged_tensors(record)
        return tensors + (damage(self.path) if listed else [])

    def _damaged_tensors(self, record: dict[str, Any]) -> list[str]:
        here = {name: tensor_digest(name, self.tensor(name)) for name in self.names()}
        return sorted(
            name for name in here.keys() | record["tensors"].keys() if here.get(name) != record["tensors"].get(name)
        )

    def _read_record(self) -> dict[str, Any] | None:
        file = self.path / FINGERPRINT_FILE
        if not file.exists():
            return None
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            intact = record["fingerprint"] == _identity(record["tensors"], self._identity_names())
            return record if intact and "files" in record else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _cache(self, record: dict[str, Any]) -> None:
        """Store the record; a checkpoint that may only be read is hashed again next time."""
        new = self.path / f".{FINGERPRINT_FILE}.{os.getpid()}"
        try:
            new.write_text(json.dumps(record, indent=0), encoding="utf-8")
            new.replace(self.path / FINGERPRINT_FILE)
        except OSError as error:
            logger.info("The fingerprint of %s cannot be cached (%s).", self.path, error)

    def _parts(self) -> list[SafetensorsSet]:
        return [part for part in (self._weights, self._adapter) if part is not None]

    def _part_of(self, name: str) -> SafetensorsSet:
        part = self._adapter if self._adapter and name in self._adapter else self._weights or self._adapter
        assert part is not None
        return part

    def _files(self) -> list[str]:
        return [file for part in self._parts() for file in part.files]

    def _stamps(self) -> dict[str, list[int]]:
        return _stamps(self.path, self._files())

    def _identity_names(self) -> list[str]:
        return self.model_names() or self.adapter_names()


def _weight_files(directory: Path) -> SafetensorsSet | None:
    """The model's own weights: one file, or the shards that the index names."""
    index = directory / INDEX_FILE
    if index.exists():
        return open_index(index)
    return SafetensorsSet(directory, [WEIGHTS_FILE]) if (directory / WEIGHTS_FILE).exists() else None


def _stamps(directory: Path, files: list[str]) -> dict[str, list[int]]:
    stats = {file: (directory / file).stat() for file in files}
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def _identity(digests: dict[str, str], names: list[str]) -> str:
    return hashlib.sha256("\n".join(digests[name] for name in sorted(names)).encode()).hexdigest()


def _record(directory: Path, files: list[str], digests: dict[str, str], names: list[str]) -> dict[str, Any]:
    return {
        "fingerprint": _identity(digests, names),
        "files": _stamps(directory, files),
        "tensors": dict(sorted(digests.items())),
    }


class CheckpointWriter:
    """Writes a checkpoint directory tensor by tensor; it appears under its name only when it is complete.

    Args:
        path: The directory to create, named exactly so.
        config: Becomes `config.yaml`.
        shard_size: Bytes of tensors per file, e.g. "5GB", "200MB".
        overwrite: Replace a checkpoint that stands at `path`.

    Raises:
        CheckpointError: `path` exists, and is not a checkpoint or `overwrite` is False.
        ConfigError: `shard_size` is not a size.
    """

    def __init__(
        self, path: str | Path, config: CheckpointConfig, *, shard_size: str | int = "5GB", overwrite: bool = False
    ):
        self.config = config
        self._output = AtomicDirectory(path, overwrite=overwrite)
        self._weights = ShardedWriter(self.directory, shard_size)
        self._adapter: ShardWriter | None = None
        self._digests: dict[str, str] = {}

    @property
    def path(self) -> Path:
        return self._output.path

    @property
    def directory(self) -> Path:
        """Where files may be put until the checkpoint is complete."""
        return self._output.directory

    def __enter__(self) -> CheckpointWriter:
        self._output.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._output.translated_errors():
            if kind is None:
                self._finish()
            else:
                self._weights.abandon()
                if self._adapter:
                    self._adapter.abandon()
        self._output.__exit__(kind, error, trace)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor of the model (or of its adapter, by its name) and let go of it."""
        if name in self._digests:
            raise CheckpointError(f"Tensor '{name}' must be written once to {self.path}, but comes twice.")
        tensor = tensor.detach().cpu().contiguous()
        self._digests[name] = tensor_digest(name, tensor)
        with self._output.translated_errors():
            if is_adapter_name(name):
                self._adapter = self._adapter or ShardWriter(self.directory / ADAPTER_FILE)
                self._adapter.add(name, tensor)
            else:
                self._weights.add(name, tensor)

    def add_file(self, source: str | Path, name: str) -> None:
        """Copy a file beside the weights, under `name`."""
        self._output.add_file(source, name)

    def add_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file beside the weights."""
        self._output.add_text(name, text)

    def _finish(self) -> None:
        if self._adapter:
            self._adapter.close()
        names = self._weights.close() or list(self._digests)
        files = sorted(file.name for file in self.directory.glob("*.safetensors"))
        self.add_text(CONFIG_FILE, config_text(self.config))
        record = _record(self.directory, files, self._digests, names)
        self.add_text(FINGERPRINT_FILE, json.dumps(record, indent=0))
        with self._output.translated_errors():
            # The fingerprint is a cache, rewritten when the files are copied.
            write_manifest(self.directory, leave_out=(FINGERPRINT_FILE,))


def is_adapter_name(name: str) -> bool:
    """Whether a tensor belongs to an adapter rather than to the model."""
    return name.rpartition(".")[2].startswith("lora_") or ".twin." in name
