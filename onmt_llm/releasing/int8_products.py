"""Products of int8 numbers: that they overflow on no processor, and which instructions compute them here.

What has been verified on one processor with int8 weights that could overflow (decision 026) says nothing about another
one. So the weights in the file are checked, whatever the inputs and the processor.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

_INT8 = 1
"""Number of this type in CTranslate2's file format."""
_BLOCK = 1 << 24
_INSTRUCTIONS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512bw", "avx2", "asimddp")
"""Names in /proc/cpuinfo, the fastest first."""


def largest_neighbour_sum(model_file: Path) -> int:
    """The largest sum of two neighbours of one sign (columns 2i and 2i + 1) in any int8 matrix of a `model.bin`."""
    largest = 0
    with open(model_file, "rb") as file:
        _skip(file, 4)  # version of the file format
        _skip(file, _integer(file, "H"))  # name of the model type
        _skip(file, 4)  # its revision
        for _ in range(_integer(file, "I")):
            _skip(file, _integer(file, "H"))
            shape = [_integer(file, "I") for _ in range(_integer(file, "B"))]
            dtype, size = _integer(file, "B"), _integer(file, "I")
            if dtype == _INT8 and len(shape) == 2:
                largest = max(largest, _largest_in_matrix(file, *shape))
            else:
                _skip(file, size)
    return largest


def _largest_in_matrix(file: BinaryIO, rows: int, columns: int) -> int:
    largest = 0
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        block = np.fromfile(file, np.int8, count * columns).reshape(count, columns)
        pairs = np.zeros((count, columns + columns % 2), np.int16)
        pairs[:, :columns] = block
        for positive in (np.maximum(pairs, 0), np.maximum(-pairs, 0)):
            largest = max(largest, int((positive[:, ::2] + positive[:, 1::2]).max()))
    return largest


def _integer(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])


def _skip(file: BinaryIO, size: int) -> None:
    file.seek(size, 1)


def int8_instructions() -> str:
    """The fastest instructions for int8 that this processor has, by their names in /proc/cpuinfo."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux
        words = set()
    return next((name for name in _INSTRUCTIONS if name in words), f"unknown ({platform.machine()})")
