"""The files of a GGUF model, and their tensors, dequantised one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onmt_llm.checkpoint.files.blocks import row_blocks, with_rows
from onmt_llm.checkpoint.formats.gguf.header import check_header
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.optional import require

_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_QUANTISED_TYPES = frozenset(
    (
        *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"),
        *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0"),
    )
)
_PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is, or the only one (or the first part of one) in the directory `path`."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    firsts = [file for file in files if (split := _SPLIT.fullmatch(file.name)) is None or int(split[2]) == 1]
    if len(firsts) > 1:
        raise CheckpointError(
            f"{path} must hold one GGUF model, but holds {', '.join(f.name for f in firsts)}.", hint="name the file"
        )
    return firsts[0] if firsts else None


@dataclass(frozen=True)
class GgufPart:
    """One file: its metadata as plain values, its tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]


def gguf_parts(file: Path) -> list[Path]:
    """All files of the model that `file` is, or is the first part of."""
    split = _SPLIT.fullmatch(file.name)
    if split is None:
        return [file]
    parts = [file.with_name(f"{split[1]}-{number:05d}-of-{split[3]}.gguf") for number in range(1, int(split[3]) + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"The GGUF model {file} is split in {split[3]} files, but these are missing: {', '.join(missing)}."
        )
    return parts


def open_part(file: Path) -> GgufPart:
    """One file, of which the header is read.

    Raises:
        CheckpointError: It is damaged or incomplete.
    """
    gguf = require("gguf", "reading a GGUF file")
    check_header(file)
    try:
        reader = gguf.GGUFReader(file)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a readable GGUF file ({error!r}).", hint="it is damaged or incomplete: copy it again"
        ) from error
    return GgufPart(metadata, tensors)


class GgufTensors:
    """The tensors of one or more GGUF files. Quantised ones are read as float32, others in their own type.

    Attributes:
        metadata: Metadata of the first file.
    """

    def __init__(self, parts: Sequence[GgufPart]) -> None:
        self.metadata = parts[0].metadata
        self._tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        types = {tensor.tensor_type.name for tensor in self._tensors.values()}
        strange = sorted(types - _PLAIN_TYPES.keys() - _QUANTISED_TYPES)
        if strange:
            raise UnsupportedError(
                f"The GGUF file holds tensors of type {', '.join(strange)}, which cannot be dequantised."
            )

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Outermost dimension first; GGUF stores the innermost first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> torch.dtype:
        return _PLAIN_TYPES.get(self._tensors[name].tensor_type.name, torch.float32)

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        gguf = require("gguf", "reading a GGUF file")
        if tensor.tensor_type.name in ("F32", "F16"):
            return torch.from_numpy(tensor.data.copy()).reshape(self.shape(name)).to(self.dtype(name))
        values = torch.empty(self.shape(name), dtype=self.dtype(name))
        data = tensor.data.reshape(-1, tensor.data.shape[-1])
        for rows, block in with_rows(row_blocks(values.view(-1, values.shape[-1]))):
            block.copy_(torch.from_numpy(gguf.dequantize(data[rows], tensor.tensor_type)))
        return values
