"""The weights of a Hugging Face directory: safetensors or `.bin` files, with an index or without; tensors renamed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onmt_llm.checkpoint.files.safetensors import INDEX_FILE, WEIGHTS_FILE, SafetensorsSet, open_index
from onmt_llm.checkpoint.files.torch_pickle import TorchTensors
from onmt_llm.checkpoint.formats.imported import TypedSource, are_copies
from onmt_llm.errors import CheckpointError

BIN_INDEX_FILE = "pytorch_model.bin.index.json"
BIN_FILE = "pytorch_model.bin"
_SHARDS = ("model-*-of-*.safetensors", "model-*-of-*.bin", "pytorch_model-*-of-*.bin", "hf_model_*_*.pt")
"""Names with the number of the shard, and last the number of shards, or of the epoch."""


def has_weights(model_dir: Path) -> bool:
    """Whether the directory holds weights under the names that `open_weights` looks for."""
    names = (INDEX_FILE, WEIGHTS_FILE, BIN_INDEX_FILE, BIN_FILE)
    return any((model_dir / name).is_file() for name in names) or bool(_shards_without_index(model_dir))


def open_weights(model_dir: Path) -> TypedSource:
    """The tensors of the directory: safetensors if there are any, otherwise PyTorch `.bin` files.

    Raises:
        CheckpointError: There are none, or some are missing or damaged.
    """
    if (model_dir / INDEX_FILE).is_file():
        return open_index(model_dir / INDEX_FILE)
    if (model_dir / WEIGHTS_FILE).is_file():
        return SafetensorsSet(model_dir, [WEIGHTS_FILE])
    if (model_dir / BIN_INDEX_FILE).is_file():
        return TorchTensors.open([model_dir / name for name in _bin_shards(model_dir / BIN_INDEX_FILE)])
    if (model_dir / BIN_FILE).is_file():
        return TorchTensors.open([model_dir / BIN_FILE])
    shards = _shards_without_index(model_dir)
    if shards:
        is_plain = shards[0].suffix == ".safetensors"
        return SafetensorsSet(model_dir, [shard.name for shard in shards]) if is_plain else TorchTensors.open(shards)
    raise CheckpointError(
        f"{model_dir} must hold {WEIGHTS_FILE}, {INDEX_FILE}, {BIN_FILE} or {BIN_INDEX_FILE}, but holds none."
    )


def _shards_without_index(model_dir: Path) -> list[Path]:
    """The shards of a model without a list of them, as torchtune writes it.

    Raises:
        CheckpointError: Some are missing, or there are those of several models.
    """
    shards: list[Path] = next(filter(None, (sorted(model_dir.glob(pattern)) for pattern in _SHARDS)), [])
    last_numbers = sorted({re.split("[-_]", shard.stem)[-1] for shard in shards})
    if len(last_numbers) > 1:
        raise CheckpointError(
            f"{model_dir} must hold the weights of one model, but holds {', '.join(shard.name for shard in shards)}.",
            hint="move those of other epochs elsewhere",
        )
    if shards and "-of-" in shards[0].name and len(shards) != int(last_numbers[0]):
        raise CheckpointError(
            f"{model_dir} must hold {int(last_numbers[0])} shards of weights, but holds {len(shards)}: "
            f"{', '.join(shard.name for shard in shards)}."
        )
    return shards


@dataclass(frozen=True)
class RenamedTensors:
    """Tensors under other names.

    Attributes:
        source: Holds the tensors.
        originals: Its name for each of ours.
    """

    source: TypedSource
    originals: Mapping[str, str]

    def names(self) -> list[str]:
        return list(self.originals)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.originals[name])

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(self.originals[name])

    def tensor(self, name: str) -> Tensor:
        return self.source.tensor(self.originals[name])


def renamed(source: TypedSource, prefixes: Sequence[tuple[str, str]]) -> TypedSource:
    """The tensors under current names: where a name begins with the first of a pair, it begins with the second."""

    def current(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name)

    return RenamedTensors(source, {current(name): name for name in source.names()}) if prefixes else source


def without_copies(source: TypedSource, names: Sequence[str]) -> TypedSource:
    """The tensors with one of those that are stored under several names, under the first of these names.

    Raises:
        CheckpointError: They are not copies of one another.
    """
    here = [name for name in names if name in source.names()]
    different = [name for name in here[1:] if not are_copies(source, here[0], name)]
    if different:
        raise CheckpointError(
            f"Encoder and decoder must share one embedding, but {', '.join(different)} differs from {here[0]}."
        )
    others = {name: name for name in source.names() if name not in here}
    return RenamedTensors(source, {**others, names[0]: here[0]}) if here else source


def _bin_shards(index: Path) -> list[str]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} must be JSON with a `weight_map`, but is not ({error!r}).") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"The shards in {index} must be files beside it, but are: {', '.join(outside[:5])}.")
    return names
