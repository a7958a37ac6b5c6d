"""Number types of the tensors in a GGUF file: which tensor gets which type, and rows quantised while they are written.

The choice follows llama.cpp's converter (F32, F16, BF16, Q8_0) and `llama-quantize` (the others), except that the
output layer is Q8_0 where `llama-quantize` takes Q6_K, which the `gguf` package cannot write.
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.optional import require

FILE_TYPES: Mapping[str, str] = {
    "f32": "ALL_F32",
    **{name: f"MOSTLY_{name.upper()}" for name in ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")},
}
"""The types that can be written, and the name of each as a `general.file_type`."""

LLAMA_CPP = "cyllama"
"""The package with llama.cpp."""
LLAMA_CPP_TYPES: Mapping[str, int] = {"q2_k": 10, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""The types that llama.cpp quantises, and its number of each (`llama_ftype`)."""
UNQUANTIZED: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""The type that llama.cpp quantises from, by that of the model."""

_PRECISE = ("q8_0", *("f32", "f16", "bf16"))
"""Types in which the output layer is stored like the other matrices."""
_KEPT = ("position_embd.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "attn_rel_b.weight")
"""Ends of the names of small matrices that stay in float32, besides norms."""
_CHUNK = 2**19
"""Values that are quantised at once."""


def tensor_type(name: str, shape: tuple[int, ...], file_type: str, *, is_output: bool) -> str:
    """The number type of a tensor, in lower case.

    Args:
        name: Its name in the file.
        shape: Its shape, rows last.
        file_type: A name in `FILE_TYPES`.
        is_output: Logits are computed with it: the output layer, or the embedding where both are one matrix.
    """
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith(("_norm.weight", *_KEPT)):
        return "f32"
    chosen = "q8_0" if is_output and file_type not in _PRECISE else file_type
    block, _ = _sizes(chosen)
    if shape[-1] % block == 0:
        return chosen
    logger.warning("%s is stored as f16: its rows have %d values, which is no multiple of %d.", name, shape[-1], block)
    return "f16"


def _sizes(type: str) -> tuple[int, int]:
    """Values and bytes of a block."""
    gguf = require("gguf", "writing a GGUF file")
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type.upper()]]
    return int(values), int(size)


class QuantizedRows:
    """A tensor that is quantised while it is written; it has what `GGUFWriter.write_tensor_data` needs of an array.

    Args:
        name: Its name in the file, for messages.
        tensor: The tensor, of any floating-point type.
        type: A result of `tensor_type`.
    """

    def __init__(self, name: str, tensor: torch.Tensor, type: str) -> None:
        self._name, self._tensor, self._type = name, tensor, type
        self.nbytes = size_in_bytes(tuple(tensor.shape), type)

    def tofile(self, file: BinaryIO) -> None:
        """Write the rows.

        Raises:
            CheckpointError: Values are too large for the type.
        """
        gguf = require("gguf", "writing a GGUF file")
        kind = gguf.GGMLQuantizationType[self._type.upper()]
        rows = self._tensor.reshape(-1, self._tensor.shape[-1])
        for part in rows.split(max(1, _CHUNK // rows.shape[1])):
            values = part.float().contiguous().numpy()
            if self._type != "f32" and self._type != "bf16" and np.abs(values).max(initial=0) > _largest(self._type):
                raise CheckpointError(
                    f"The values of {self._name} must be at most {_largest(self._type):,.0f} to be stored as "
                    f"{self._type}, but one is {np.abs(values).max():,.0f}.",
                    hint="use bf16 or f32",
                )
            stored: Any = gguf.quantize(values, kind)
            file.write(np.ascontiguousarray(stored).data)


def _largest(type: str) -> float:
    """The largest value of a type; the integer types have a float16 scale, that of their largest value."""
    largest = float(np.finfo(np.float16).max)
    return largest * {"q8_0": 127, "q4_0": 8, "q5_0": 16}.get(type, 1)


def size_in_bytes(shape: tuple[int, ...], type: str) -> int:
    """Bytes of a tensor in a file."""
    block, size = _sizes(type)
    return int(np.prod(shape, dtype=np.int64)) // block * size


def quantize_by_llama_cpp(source: Path, output: Path, type: str) -> None:
    """Write a GGUF file in one of `LLAMA_CPP_TYPES`, as `llama-quantize` does: it chooses the type of each tensor.

    Args:
        source: A file whose matrices are F32, F16 or BF16.
        output: The file to write.
        type: A name in `LLAMA_CPP_TYPES`.
    """
    library = require("cyllama.llama.llama_cpp", f"The type {type}", LLAMA_CPP)
    library.disable_logging()
    settings = library.LlamaModelQuantizeParams()
    settings.ftype = LLAMA_CPP_TYPES[type]
    settings.nthread = torch.get_num_threads()
    library.model_quantize(str(source), str(output), settings)
