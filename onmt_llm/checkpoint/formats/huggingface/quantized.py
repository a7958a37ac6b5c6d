"""Quantised weights of Hugging Face models: the method that stored them, by `config.json` and by the tensors.

Scaled fp8 and int8, bitsandbytes' 8 and 4 bits, GPTQ, AWQ and compressed-tensors (`packed`), and MXFP4 (`mxfp4`) are
turned back into numbers by their formulas; others are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig
from onmt_llm.checkpoint.formats.huggingface.mxfp4 import find_mxfp4
from onmt_llm.checkpoint.formats.huggingface.packed import find_packed
from onmt_llm.checkpoint.formats.imported import NUMBERS, TypedSource
from onmt_llm.checkpoint.formats.tokenizer_files import read_json
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger

_CODED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
_SCALES = (torch.float32, torch.float16, torch.bfloat16)
_LONGEST_STATE = 4096
"""Bytes of the JSON text in which bitsandbytes states sizes."""


class Coding(Protocol):
    """How one weight is stored.

    Attributes:
        used: Names of the tensors that belong to it, besides the weight.
        shape: Shape of the weight.
    """

    @property
    def used(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def decode(self, source: TypedSource, name: str) -> Tensor:
        """The weight in float32, or in a smaller type that holds it exactly."""
        ...


@dataclass(frozen=True)
class Scaled:
    """Each block of a matrix has a factor: the weight is `stored * scale`.

    Attributes:
        block: Rows and columns of a block; the last ones may be smaller.
    """

    shape: tuple[int, ...]
    used: tuple[str, ...]
    block: tuple[int, int]

    def decode(self, source: TypedSource, name: str) -> Tensor:
        weight = source.tensor(name).float()
        (rows, columns), (height, width) = weight.shape, self.block
        scale = source.tensor(self.used[0]).float().reshape(math.ceil(rows / height), math.ceil(columns / width))
        if width >= columns:
            return weight.mul_(scale.repeat_interleave(height, 0)[:rows])
        for part, factors in zip(weight.split(height), scale, strict=True):
            part.mul_(factors.repeat_interleave(width)[:columns])
        return weight


@dataclass(frozen=True)
class BnbInt8:
    """bitsandbytes' LLM.int8(): each row is stored as 127ths of its largest absolute value."""

    shape: tuple[int, ...]
    used: tuple[str, ...]

    def decode(self, source: TypedSource, name: str) -> Tensor:
        largest = source.tensor(self.used[0]).float().reshape(-1, 1)
        return source.tensor(name).float().mul_(largest).mul_(1 / 127)


@dataclass(frozen=True)
class Bnb4Bit:
    """bitsandbytes' nf4 and fp4: two values per byte, looked up in a table, times a factor per block.

    Attributes:
        stem: Name of the weight, to which the names of the tables are appended.
        state: Sizes of blocks; with `nested_blocksize` the factors are 8-bit values themselves.
    """

    shape: tuple[int, ...]
    used: tuple[str, ...]
    stem: str
    state: Mapping[str, Any]

    def decode(self, source: TypedSource, name: str) -> Tensor:
        packed = source.tensor(name).reshape(-1)
        table = source.tensor(f"{self.stem}.quant_map").float()
        values = table[torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1).int()]
        count = math.prod(self.shape)
        return _times_blocks(values[:count], self._factors(source), int(self.state["blocksize"])).reshape(self.shape)

    def _factors(self, source: TypedSource) -> Tensor:
        factors = source.tensor(f"{self.stem}.absmax")
        if "nested_blocksize" not in self.state:
            return factors.float()
        table = source.tensor(f"{self.stem}.nested_quant_map").float()
        outer = source.tensor(f"{self.stem}.nested_absmax").float()
        nested = _times_blocks(table[factors.int()], outer, int(self.state["nested_blocksize"]))
        return nested + float(self.state["nested_offset"])


def _times_blocks(values: Tensor, factors: Tensor, size: int) -> Tensor:
    """One-dimensional values times a factor for each `size` of them."""
    whole = len(values) // size
    values[: whole * size].view(whole, size).mul_(factors[:whole, None])
    values[whole * size :].mul_(factors[whole:])
    return values


class DequantizedTensors:
    """A source whose coded weights are decoded when they are read.

    Args:
        source: The tensors as stored.
        codings: The coded weights.
        dtype: Type of the decoded weights.
    """

    def __init__(self, source: TypedSource, codings: Mapping[str, Coding], dtype: torch.dtype) -> None:
        self._source, self._codings, self._dtype = source, codings, dtype
        self._used = {name for coding in codings.values() for name in coding.used}

    def names(self) -> list[str]:
        plain = [name for name in self._source.names() if name not in self._used and name not in self._codings]
        return [*plain, *self._codings]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._codings[name].shape if name in self._codings else self._source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._dtype if name in self._codings else self._source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        if name in self._codings:
            return self._codings[name].decode(self._source, name).to(self._dtype)
        return self._source.tensor(name)


def find_codings(source: TypedSource, settings: Mapping[str, Any]) -> dict[str, Coding]:
    """The coded weights that can be decoded exactly.

    Args:
        source: The tensors as stored.
        settings: `quantization_config` of config.json.
    """
    here = set(source.names())
    block = settings.get("weight_block_size")
    found: dict[str, Coding] = {**find_packed(source, settings), **find_mxfp4(source)}
    for name in here:
        if name.endswith(".weight"):
            coding = (
                _bnb_4bit(source, here, name) or _bnb_int8(source, here, name) or _scaled(source, here, name, block)
            )
            if coding is not None:
                found[name] = coding
    return found


def _scaled(source: TypedSource, here: set[str], name: str, block: Sequence[int] | None) -> Scaled | None:
    scale = next((each for each in (f"{name}_scale_inv", f"{name}_scale") if each in here), None)
    shape = source.shape(name)
    if scale is None or source.dtype(name) not in _CODED or source.dtype(scale) not in _SCALES or len(shape) != 2:
        return None
    (rows, columns), grid = shape, source.shape(scale)
    if math.prod(grid) == 1:
        size = (rows, columns)
    elif math.prod(grid) == rows and grid[0] == rows:
        size = (1, columns)
    elif len(grid) == 2 and block is not None and len(block) == 2:
        size = (block[0], block[1])
    elif len(grid) == 2 and 0 not in grid and rows % grid[0] == 0 and columns % grid[1] == 0:
        size = (rows // grid[0], columns // grid[1])
    else:
        return None
    if math.prod(grid) != math.ceil(rows / size[0]) * math.ceil(columns / size[1]):
        return None
    # scales of the inputs and of the KV cache round what flows through the layer, not its weights
    inputs = f"{name.removesuffix('.weight')}.input_scale"
    return Scaled(shape, (scale, *([inputs] if inputs in here else [])), size)


def _bnb_int8(source: TypedSource, here: set[str], name: str) -> BnbInt8 | None:
    stem, shape = name.removesuffix(".weight"), source.shape(name)
    largest, layout = f"{stem}.SCB", f"{stem}.weight_format"
    if source.dtype(name) != torch.int8 or largest not in here or source.shape(largest) != shape[:1]:
        return None
    if layout not in here:
        return BnbInt8(shape, (largest,))
    # 0 = rows, as they are; the others are for old GPUs
    by_rows = math.prod(source.shape(layout)) == 1 and int(source.tensor(layout)) == 0
    return BnbInt8(shape, (largest, layout)) if by_rows else None


def _bnb_4bit(source: TypedSource, here: set[str], name: str) -> Bnb4Bit | None:
    states = [state for kind in ("nf4", "fp4") if (state := f"{name}.quant_state.bitsandbytes__{kind}") in here]
    if not states or source.dtype(name) != torch.uint8 or math.prod(source.shape(states[0])) > _LONGEST_STATE:
        return None
    try:
        state = json.loads(bytes(source.tensor(states[0]).tolist()))
        shape = tuple(int(size) for size in state["shape"])
        size, is_nested = int(state["blocksize"]), "nested_blocksize" in state
        outer, _ = (int(state["nested_blocksize"]), float(state["nested_offset"])) if is_nested else (1, 0.0)
    except (ValueError, KeyError, TypeError):
        return None
    if min((*shape, size, outer)) < 1:
        return None
    count = math.prod(shape)
    blocks = math.ceil(count / size)
    lengths = {"": math.ceil(count / 2), ".absmax": blocks, ".quant_map": 16}
    if is_nested:
        lengths |= {".nested_absmax": math.ceil(blocks / outer), ".nested_quant_map": 256}
    parts = {f"{name}{end}": length for end, length in lengths.items()}
    fits = here.issuperset(parts) and all(math.prod(source.shape(part)) == n for part, n in parts.items())
    if not fits or (source.dtype(f"{name}.absmax") == torch.uint8) != is_nested:
        return None
    return Bnb4Bit(shape, (*(part for part in parts if part != name), states[0]), name, state)


_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fbgemm_fp8": "FBGEMM fp8",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "exl2": "EXL2",
}
"""Names of methods, where they differ from `quant_method`."""

_MARKS = {
    ".qweight": "GPTQ or AWQ",
    ".q_weight": "EXL2",
    ".trellis": "EXL3",
    ".SCB": "bitsandbytes (8 bits)",
    ".absmax": "bitsandbytes (4 bits)",
    ".weight_packed": "compressed-tensors",
    "_blocks": "MXFP4",
    ".weight_scale_inv": "fp8 (scales per block)",
    ".weight_scale": "compressed-tensors or fp8",
}
"""Ends of tensor names that only a quantised model has."""

_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


_OLDER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which AutoGPTQ and AutoAWQ described what they stored, before config.json did."""


def with_older_settings(hf_config: HfConfig, model_dir: Path) -> HfConfig:
    """`config.json`, with the quantisation that a file of its own describes."""
    for name, method in _OLDER_FILES.items():
        if not _settings(hf_config) and (model_dir / name).is_file():
            return {**hf_config, "quantization_config": {"quant_method": method, **read_json(model_dir / name)}}
    return hf_config


def plain_weights(hf_config: HfConfig, source: TypedSource, model_dir: Path) -> TypedSource:
    """The weights as numbers: quantised ones are decoded where a formula does that exactly.

    Raises:
        UnsupportedError: They are quantised in another way, as config.json says or their names and types show.
    """
    declared, method, coded = declared_method(hf_config), _method_by_names(source), _coded(source)
    if not method and not coded:
        if declared is not None:
            logger.warning(
                "config.json says %s, but the weights are not quantised; they are taken as they are.", declared
            )
        return source
    stored = hf_config.get("dtype") or hf_config.get("torch_dtype")
    codings = find_codings(source, _settings(hf_config))
    plain = DequantizedTensors(source, codings, _TYPES.get(str(stored), torch.bfloat16)) if codings else source
    left, coded = _method_by_names(plain), _coded(plain)
    if left or coded:
        raise UnsupportedError(
            f"The weights of {model_dir} must be floating-point numbers, but are quantised with "
            f"{declared or left or f'an unknown method (such as {coded[0]})'}.",
            hint="convert the model that they were made from; train with quant_type, or release with "
            "-quantization int8",
        )
    method = declared or method or "an unnamed method"
    logger.warning("%d weights are quantised with %s; they are decoded, with its loss.", len(codings), method)
    return plain


def _coded(source: TypedSource) -> list[str]:
    """Weights whose type is that of codes."""
    return [name for name in source.names() if name.endswith("weight") and source.dtype(name) not in NUMBERS]


def _settings(hf_config: HfConfig) -> Mapping[str, Any]:
    if isinstance(hf_config.get("quantization"), Mapping):
        return {"quant_method": "MLX", **hf_config["quantization"]}
    settings = hf_config.get("quantization_config") or hf_config.get("compression_config")
    return settings if isinstance(settings, Mapping) else {}


def declared_method(hf_config: HfConfig) -> str | None:
    """The quantisation that `config.json` declares, in words; None = none."""
    settings = _settings(hf_config)
    if not settings:
        return None
    method = str(settings.get("quant_method") or "an unnamed method")
    details = ", ".join(_details(settings))
    return _METHODS.get(method, method) + (f" ({details})" if details else "")


def _details(settings: Mapping[str, Any]) -> list[str]:
    """Bits, number format and group size, as far as they are stated."""
    bits = settings.get("bits") or settings.get("w_bit")
    bits = bits or (4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None)
    format = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else settings.get("format")
    group = settings.get("group_size") or settings.get("q_group_size")
    block = settings.get("weight_block_size")
    stated = {"{} bits": bits, "{}": format, "groups of {}": group, "blocks of {}": block}
    return [words.format(value) for words, value in stated.items() if value]


def _method_by_names(source: TypedSource) -> str | None:
    names = source.names()
    return next((what for end, what in _MARKS.items() if any(name.endswith(end) for name in names)), None)
