"""Load checkpoints for the torch engine, in the requested number format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from onmt_llm.checkpoint.average import vocabularies
from onmt_llm.checkpoint.load import Placement, build_model, load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.log import log_once
from onmt_llm.nn.device import DTYPES, freed_at_once
from onmt_llm.nn.inference.fuse import fuse_for_inference
from onmt_llm.nn.inference.packed import has_bf16_kernels
from onmt_llm.nn.transformer import Transformer

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec

_DTYPES = {name: dtype for word, dtype in DTYPES.items() for name in (word, str(dtype).removeprefix("torch."))}
"""The names of `model_dtype`, and those of CTranslate2's `compute_type`."""


def load_models(
    paths: Sequence[str | Path], *, device: torch.device, compute_type: str, dtype: str | None
) -> tuple[list[Transformer], Codec]:
    """Load one model or an ensemble.

    Args:
        paths: Checkpoints, or adapters with their bases.
        device: Where to compute.
        compute_type: See `open_engine`.
        dtype: See `open_engine`.

    Returns:
        The models, changed for inference (`fuse_for_inference`), and the codec of the first.

    Raises:
        ConfigError: The models have different vocabularies or kinds, or the number format is unknown.
        UnsupportedError: Adapters cannot be loaded in int8.
    """
    checkpoints = [Checkpoint.open(path) for path in paths]
    codecs = [checkpoint.codec() for checkpoint in checkpoints]
    for path, codec in zip(paths[1:], codecs[1:], strict=True):
        _check_same_vocabulary(codecs[0], codec, path)
    with freed_at_once():
        models = [_load(one, device=device, compute_type=compute_type, dtype=dtype) for one in checkpoints]
    return models, codecs[0]


@torch.no_grad()
def _load(checkpoint: Checkpoint, *, device: torch.device, compute_type: str, dtype: str | None) -> Transformer:
    if compute_type == "int4":
        return fuse_for_inference(_bf16_model(checkpoint, device), in_4_bits=True)
    name = dtype or _dtype_name(compute_type, stored=checkpoint.config.model.dtype, device_type=device.type)
    if name not in _DTYPES:
        raise ConfigError(f"The type of the torch engine must be one of {', '.join(_DTYPES)}, but is '{name}'.")
    if not compute_type.startswith("int8"):
        return fuse_for_inference(load_model(checkpoint.path, dtype=_DTYPES[name], device=device).eval())
    _check_merged(checkpoint, compute_type)
    layers = _linear_layers(checkpoint)
    return fuse_for_inference(build_model(checkpoint, Placement(_DTYPES[name], device, layers, "int8")).eval())


def _bf16_model(checkpoint: Checkpoint, device: torch.device) -> Transformer:
    """The model whose linear layers can be rounded to 4 bits."""
    _check_merged(checkpoint, "int4")
    if device.type != "cpu" or not has_bf16_kernels():
        raise UnsupportedError(
            "precision int4 needs a CPU with instructions for bf16 (AVX512_BF16), but this device has none.",
            hint="use precision: int8",
        )
    return load_model(checkpoint.path, dtype=torch.bfloat16, device=device).eval()


def _check_merged(checkpoint: Checkpoint, compute_type: str) -> None:
    if checkpoint.is_adapter:
        raise UnsupportedError(
            f"compute_type {compute_type} needs a merged checkpoint, but {checkpoint.path} is a "
            f"{checkpoint.config.noun}.",
            hint="merge it: onmt_llm_lora --action merge",
        )


def _linear_layers(checkpoint: Checkpoint) -> list[str]:
    """Paths of the linear layers, the output layer included; a router of experts, or a gate of one number, is none."""
    with torch.device("meta"):
        model = Transformer(checkpoint.config.model)
    return [path for path, module in model.named_modules() if type(module) is nn.Linear and module.out_features > 1]


def _check_same_vocabulary(first: Codec, other: Codec, path: str | Path) -> None:
    """The models of an ensemble must read and write the same tokens."""
    kinds = {codec.config.model.is_decoder_only for codec in (first, other)}
    rows = {codec.config.model.vocab_size for codec in (first, other)}
    if len(kinds) > 1 or len(rows) > 1 or vocabularies(first) != vocabularies(other):
        raise ConfigError(
            f"The models of an ensemble must be of one kind and vocabulary, but {path} is of another one."
        )


def _dtype_name(compute_type: str, *, stored: str, device_type: str) -> str:
    """Type to compute in; fp16 products are an order of magnitude slower than fp32 ones on a CPU."""
    name = compute_type.removeprefix("int8").lstrip("_") or "auto"
    if name not in ("auto", "default"):
        return name
    if stored == "fp16" and device_type == "cpu":
        log_once("The checkpoint is stored in fp16, which CPUs compute slowly: it runs in fp32 (choose with dtype).")
        return "fp32"
    return stored
