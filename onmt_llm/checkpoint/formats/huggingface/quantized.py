"""Quantised weights of Hugging Face models: the method that stored them, by `config.json` and by the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onmt_llm.checkpoint.formats.huggingface.dequantize import DequantizedTensors, find_codings
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig
from onmt_llm.checkpoint.formats.imported import NUMBERS, TypedSource
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger

_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fbgemm_fp8": "FBGEMM fp8", "hqq": "HQQ"}
"""Names of methods, where they differ from `quant_method`."""

_MARKS = {
    ".qweight": "GPTQ or AWQ",
    ".SCB": "bitsandbytes (8 bits)",
    ".absmax": "bitsandbytes (4 bits)",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "fp8 (scales per block)",
    ".weight_scale": "compressed-tensors or fp8",
}
"""Ends of tensor names that only a quantised model has."""

_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def plain_weights(hf_config: HfConfig, source: TypedSource, model_dir: Path) -> TypedSource:
    """The weights as numbers: quantised ones are decoded where a formula does that exactly.

    Raises:
        UnsupportedError: They are quantised in another way, as config.json says or their names and types show.
    """
    declared = declared_method(hf_config)
    stored = hf_config.get("dtype") or hf_config.get("torch_dtype")
    codings = find_codings(source, _settings(hf_config).get("weight_block_size"))
    plain = DequantizedTensors(source, codings, _TYPES.get(str(stored), torch.bfloat16)) if codings else source
    left = _method_by_names(plain)
    coded = [name for name in plain.names() if name.endswith("weight") and plain.dtype(name) not in NUMBERS]
    if left or coded:
        raise UnsupportedError(
            f"The weights of {model_dir} must be floating-point numbers, but are quantised with "
            f"{declared or left or f'an unknown method (such as {coded[0]})'}.",
            hint="convert the model that they were made from; train with quant_type, or release with "
            "-quantization int8",
        )
    if codings:
        method = declared or _method_by_names(source) or "an unnamed method"
        logger.warning("%d weights are quantised with %s; they are decoded, with its loss.", len(codings), method)
    elif declared is not None:
        logger.warning("config.json says %s, but the weights are not quantised; they are taken as they are.", declared)
    return plain


def _settings(hf_config: HfConfig) -> Mapping[str, Any]:
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
