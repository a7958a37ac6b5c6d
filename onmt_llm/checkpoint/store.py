"""The checkpoint directory: `Checkpoint` reads it lazily, `CheckpointWriter` writes it completely or not at all.

config.yaml                       `CheckpointConfig`
model.safetensors                 weights, or model-00001-of-00003.safetensors ... with model.safetensors.index.json,
                                  or shards/, with the parts of them that each process of a run held
adapter.safetensors               LoRA weights; alone (an adapter) or beside the weights of its base (a concatenation);
                                  or the twins of blocks (an expansion), alone
vocab.txt, tokenizer files, chat_template.jinja
manifest.json                     checksums of every file and tensor, and the fingerprint; written last
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import torch

from onmt_llm.atomic import AtomicDirectory
from onmt_llm.checkpoint.directory import (
    MANIFEST_FILE,
    STATE_PREFIX,
    TENSOR_SUFFIX,
    Manifest,
    find_damage,
    manifest_text,
    no_weights,
    open_directory,
    refuse_damage,
    resolve_path,
    write_manifest,
)
from onmt_llm.checkpoint.files.blocks import finite, nbytes, row_blocks, tensor_bytes
from onmt_llm.checkpoint.files.safetensors import (
    DTYPE_NAMES,
    INDEX_FILE,
    WEIGHTS_FILE,
    SafetensorsSet,
    SafetensorsWriter,
    ShardedWriter,
    open_index,
    tensor_digest,
)
from onmt_llm.checkpoint.files.shards import SHARDS_DIRECTORY, open_shards
from onmt_llm.checkpoint.progress import TensorProgress
from onmt_llm.checksums import tensor_prefix
from onmt_llm.config.checkpoint import CONFIG_FILE, CheckpointConfig, config_text, is_own_file, read_config
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec

ADAPTER_FILE = "adapter.safetensors"


class TensorReader(Protocol):
    """Reads tensors by name: a `SafetensorsSet`, or something that computes them from one."""

    def names(self) -> list[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def tensor(self, name: str) -> torch.Tensor: ...

    def blocks(self, name: str) -> Iterator[torch.Tensor]: ...


class Checkpoint:
    """A checkpoint directory, opened for reading. Tensors are read one at a time, on request.

    Examples:
        >>> checkpoint = onmt_llm.Checkpoint.open("llama")
        >>> checkpoint
        Checkpoint('llama', decoder-only, 0+2 layers, width 32, vocabulary 259)
        >>> checkpoint.shape("decoder.embed_tokens.weight")
        (259, 32)

    Attributes:
        path: The directory.
        config: Content of `config.yaml`.
        is_adapter: The directory holds only an adapter or expansion; its base is elsewhere.
        has_adapter: The directory holds an adapter or expansion, alone or beside its base.
    """

    def __init__(
        self,
        path: Path,
        config: CheckpointConfig,
        weights: TensorReader | None,
        adapter: SafetensorsSet | None,
        manifest: Manifest | None = None,
    ):
        self.path = path
        self.config = config
        self._weights = weights
        self._adapter = adapter
        self.is_adapter = weights is None
        self.has_adapter = adapter is not None
        self._fingerprint = None if manifest is None else manifest.fingerprint

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open the checkpoint at `path` (with or without a trailing `.pt`).

        Raises:
            CheckpointError: It is missing, of a newer format, or its files are damaged or incomplete.
        """
        directory = resolve_path(path)
        config, manifest = open_directory(directory)
        if manifest is not None:
            _check_complete(manifest)
        return cls._with(directory, config, manifest)

    @classmethod
    def _with(cls, directory: Path, config: CheckpointConfig, manifest: Manifest | None) -> Checkpoint:
        listed = None if manifest is None else manifest.files
        weights = _weight_files(directory, manifest)
        has_adapter = (directory / ADAPTER_FILE).exists()
        adapter = SafetensorsSet(directory, [ADAPTER_FILE], listed=listed) if has_adapter else None
        if weights is None and adapter is None:
            raise no_weights(directory, f"{WEIGHTS_FILE} (or {INDEX_FILE}) nor {ADAPTER_FILE}")
        if adapter is not None and config.addition is None:
            raise CheckpointError(
                f"{directory} holds {ADAPTER_FILE}, but its {CONFIG_FILE} has neither `adapter` nor `expansion`."
            )
        return cls(directory, config, weights, adapter, manifest)

    def __repr__(self) -> str:
        what = self.config.noun if self.is_adapter else self.config.model.summary
        return f"Checkpoint({str(self.path)!r}, {what})"

    def with_model(self, model: ModelConfig) -> Checkpoint:
        """The same checkpoint with another architecture of the same tensor shapes."""
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"model": model})
        return other

    def with_weights(self, model: ModelConfig, weights: TensorReader) -> Checkpoint:
        """The same checkpoint with the tensors, and the architecture, of another model that computes the same."""
        other = self.with_model(model)
        other._weights = weights
        return other

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

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor."""
        return nbytes(self.dtype(name), self.shape(name))

    def progress(self, what: str) -> TensorProgress:
        """Counts the tensors, as they are processed."""
        return TensorProgress(what, [self.nbytes(name) for name in self.names()])

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, read into its own memory and verified.

        Raises:
            CheckpointError: It differs from what was written, or its values are not finite.
        """
        tensor = self._part_of(name).tensor(name)
        for _ in finite(self.path, name, [tensor]):
            pass
        return tensor

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """One tensor in blocks of rows, each in its own memory; verified as in `tensor`, at the latest after the last.

        A consumer that does not read all blocks may have read damaged ones.
        """
        return finite(self.path, name, self._part_of(name).blocks(name))

    def check_fits(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse weights that do not fit the configuration.

        Args:
            expected: Shapes of the model's tensors by name.

        Raises:
            CheckpointError: Tensors are missing, superfluous or misshaped; lists all.
        """
        weights = self._weights
        here = {} if weights is None else {name: weights.shape(name) for name in weights.names()}
        problems = [f"missing: {name}" for name in sorted(expected.keys() - here.keys())]
        problems += [f"not used: {name}" for name in sorted(here.keys() - expected.keys())]
        problems += [
            f"wrong shape: {name} must be {list(expected[name])}, but is {list(here[name])}"
            for name in sorted(here.keys() & expected.keys())
            if here[name] != expected[name]
        ]
        if problems:
            raise CheckpointError(
                f"The tensors of {self.path} do not fit its config.yaml; {len(problems)} problems:\n  "
                + "\n  ".join(problems)
            )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors, read one at a time."""
        for name in self.names():
            yield name, self.tensor(name)

    def files(self) -> list[Path]:
        """All files except weights and configuration: vocabulary, tokeniser, template."""
        return sorted(file for file in self.path.iterdir() if file.is_file() and not is_own_file(file.name))

    def codec(self) -> Codec:
        """Vocabulary, tokeniser and template of this checkpoint."""
        from onmt_llm.text.codec import Codec

        return Codec.open(self.path)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, types and content of the tensors: the identity of a base model.

        An adapter's tensors count only if the base is not beside them. The manifest records the fingerprint, and
        tensors are verified against the same manifest as they are read. Without a manifest, all tensors are read.
        """
        if self._fingerprint is None:
            names = self.model_names() or self.adapter_names()
            self._fingerprint = _identity({name: tensor_digest(name, self.tensor(name)) for name in names}, names)
        return self._fingerprint

    def _parts(self) -> list[TensorReader]:
        return [part for part in (self._weights, self._adapter) if part is not None]

    def _part_of(self, name: str) -> TensorReader:
        part = self._adapter if self._adapter and name in self._adapter else self._weights or self._adapter
        assert part is not None
        return part


def _check_complete(manifest: Manifest) -> None:
    """Refuse a checkpoint with missing weight files. Their content is verified when it is read."""
    files = [name for name in manifest.files if name.endswith(TENSOR_SUFFIX) and not name.startswith(STATE_PREFIX)]
    missing = [name for name in files if not (manifest.directory / name).is_file()]
    refuse_damage(manifest.directory, [f"{name} is missing" for name in missing])


def _weight_files(directory: Path, manifest: Manifest | None) -> TensorReader | None:
    """The model's own weights: one file, the shards that the index names, or the parts of several processes."""
    if (directory / SHARDS_DIRECTORY).is_dir():
        return open_shards(directory, manifest)
    listed = None if manifest is None else manifest.files
    if (directory / INDEX_FILE).exists():
        return open_index(directory / INDEX_FILE, listed=listed)
    return SafetensorsSet(directory, [WEIGHTS_FILE], listed=listed) if (directory / WEIGHTS_FILE).exists() else None


def _identity(digests: dict[str, str], names: list[str]) -> str:
    return hashlib.sha256("\n".join(digests[name] for name in sorted(names)).encode()).hexdigest()


def seal(path: str | Path) -> list[str]:
    """Write a new manifest for a checkpoint or adapter: after a manual change, or if an older version wrote it.

    Everything is read first, so that an unusable checkpoint gets no manifest.

    Returns:
        Differences from the old manifest, one phrase each.

    Raises:
        CheckpointError: The checkpoint is unusable.
    """
    directory = resolve_path(path)
    changed = find_damage(directory)
    checkpoint = Checkpoint._with(directory, read_config(directory), None)
    checkpoint.codec()
    for _ in checkpoint.tensors():
        pass
    write_manifest(directory, fingerprint=checkpoint.fingerprint)
    return changed


class CheckpointWriter:
    """Writes a checkpoint directory tensor by tensor; it gets its name only when it is complete.

    Args:
        path: The directory to create, under exactly this name.
        config: Becomes `config.yaml`.
        shard_size: Bytes of tensors per file, e.g. "5GB", "200MB".
        overwrite: Replace an existing checkpoint.

    Attributes:
        path: The output.
        directory: The temporary directory that the files are written to.

    Raises:
        CheckpointError: `path` exists, and is not a checkpoint or `overwrite` is false.
        ConfigError: `shard_size` is not a size.
    """

    def __init__(
        self, path: str | Path, config: CheckpointConfig, *, shard_size: str | int = "5GB", overwrite: bool = False
    ):
        self.config = config
        self._output = AtomicDirectory(path, overwrite=overwrite)
        self.path, self.directory = self._output.path, self._output.directory
        self._weights = ShardedWriter(self.directory, shard_size)
        self._adapter: SafetensorsWriter | None = None
        self._digests: dict[str, str] = {}
        self._shards: dict[str, Mapping[str, Any]] = {}

    def __enter__(self) -> CheckpointWriter:
        self._output.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._output.translated_errors():
            if kind is not None:
                self._weights.abandon()
                if self._adapter:
                    self._adapter.abandon()
            elif not (self.directory / MANIFEST_FILE).exists():
                self.finish()
        self._output.__exit__(kind, error, trace)

    def add(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Write one tensor, in another type if one is given, and keep no reference to it; see `add_blocks`."""
        dtype = dtype or tensor.dtype
        blocks = (block.to(dtype) for block in row_blocks(tensor.detach()))
        self.add_blocks(name, blocks, dtype=dtype, shape=tensor.shape)

    def add_blocks(
        self, name: str, blocks: Iterable[torch.Tensor], *, dtype: torch.dtype, shape: Sequence[int]
    ) -> None:
        """Write one tensor of the model, or of its adapter (by its name), that comes in blocks of rows.

        Raises:
            CheckpointError: Its values are not all finite, or it was written before.
        """
        if name in self._digests:
            raise CheckpointError(f"Tensor '{name}' must be written to {self.path} only once, but is added twice.")
        digest = hashlib.sha256(tensor_prefix(name, DTYPE_NAMES[dtype], shape))
        with self._output.translated_errors():
            writer = self._writer_of(name)
            writer.begin(name, dtype, shape)
        for block in finite(self.path, name, blocks):
            with self._output.translated_errors():
                writer.write(block)
            digest.update(tensor_bytes(block))
        self._digests[name] = digest.hexdigest()

    def _writer_of(self, name: str) -> ShardedWriter | SafetensorsWriter:
        if not is_adapter_name(name):
            return self._weights
        self._adapter = self._adapter or SafetensorsWriter(self.directory / ADAPTER_FILE)
        return self._adapter

    def add_file(self, source: str | Path, name: str) -> None:
        """Copy a file beside the weights, under `name`."""
        self._output.add_file(source, name)

    def add_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file beside the weights."""
        self._output.add_text(name, text)

    def add_shards(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the `file_record`, by path, of files with the weights that processes have written into `directory`."""
        self._shards.update(records)

    def finish(self) -> None:
        """Complete `directory`; only those who check it before it gets its name need to call this."""
        if self._adapter:
            self._adapter.close()
        names = self._weights.close() or list(self._digests)
        self._output.add_text(CONFIG_FILE, config_text(self.config))
        identity = _identity(self._digests, names) if names else None  # parts have none until somebody asks for it
        with self._output.translated_errors():
            manifest = manifest_text(self.directory, fingerprint=identity, known=self._shards)
        self._output.add_text(MANIFEST_FILE, manifest)


def is_adapter_name(name: str) -> bool:
    """Whether a tensor belongs to an adapter rather than to the model."""
    return name.rpartition(".")[2].startswith("lora_") or ".twin." in name
