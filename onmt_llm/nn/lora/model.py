"""Adapters of a whole model: add them, freeze the rest, switch them off, load and merge them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.nn import wrap
from onmt_llm.nn.block_expansion import twins
from onmt_llm.nn.layers.position_wise import TokenEmbedding
from onmt_llm.nn.lora.dora import DoRAEmbedding, DoRALinear
from onmt_llm.nn.lora.init import add_initial_buffers
from onmt_llm.nn.lora.layers import LoRAEmbedding, LoRALayer, LoRALinear
from onmt_llm.nn.lora.variant import INITIAL_TENSORS, PLAIN, TRAINED_TENSORS, LoRAVariant
from onmt_llm.nn.quantized import Int8Linear


def add_lora(
    model: nn.Module,
    names: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    embedding: bool = False,
    variant: LoRAVariant = PLAIN,
) -> list[str]:
    """Wrap the named layers, after they are loaded and quantised. `freeze_all_but_lora` freezes the rest.

    Args:
        model: The model; changed in place.
        names: Layer names as in `wrap.match`.
        rank: Inner size of the adapters.
        alpha: Their outputs are scaled by alpha / rank.
        dropout: Of the adapters' inputs.
        embedding: Wrap the token embeddings too (and with tied embeddings the output layer).
        variant: Differences from plain LoRA.

    Returns:
        Dotted paths of the wrapped layers.

    Raises:
        ConfigError: No layer is named, a name matches nothing, or a layer cannot take an adapter.
    """
    names = [*names, "embed_tokens"] if embedding else list(names)
    if not names:
        raise ConfigError("lora_layers must name at least one layer, but is empty.", hint="or set lora_embedding: true")
    paths = wrap.match(model, names)
    for path in paths:
        _check_target(model.get_submodule(path), path)
    check_ranks(model, paths, rank, variant)
    _check_patterns(paths, variant)

    def factory(module: nn.Module, path: str) -> nn.Module:
        own_rank, scale = variant.size(path, rank, alpha)
        if isinstance(module, TokenEmbedding):
            return (DoRAEmbedding if variant.dora else LoRAEmbedding)(module, own_rank, scale, dropout)
        layer = (DoRALinear if variant.dora else LoRALinear)(module, own_rank, scale, dropout)
        add_initial_buffers(layer, variant.initial_tensors())
        return layer

    return wrap.replace(model, names, factory)


def check_ranks(model: nn.Module, paths: Sequence[str], rank: int, variant: LoRAVariant = PLAIN) -> None:
    """Refuse adapters that are larger than their layers, before any is built.

    Args:
        model: Has the layers; they may be on the meta device.
        paths: Dotted paths of the layers that get an adapter.
        rank: Inner size of the adapters.
        variant: May have other ranks for single layers.

    Raises:
        ConfigError: A rank is above the longer side of its layer's matrix.
    """
    for path in paths:
        _check_rank(variant.size(path, rank, 1.0)[0], model.get_submodule(path), path)


def _check_rank(rank: int, module: nn.Module, path: str) -> None:
    """A rank above the longer side of the matrix takes more memory than training the matrix itself."""
    sides = [getattr(module, side) for side in ("in_features", "out_features") if hasattr(module, side)]
    sides = sides or [module.num_embeddings, module.embedding_dim]
    if rank > max(sides):
        raise ConfigError(f"lora_rank must be at most {max(sides)}, the longer side of '{path}', but is {rank}.")


def _check_patterns(paths: Sequence[str], variant: LoRAVariant) -> None:
    for option, pattern in (("lora_rank_pattern", variant.rank_pattern), ("lora_alpha_pattern", variant.alpha_pattern)):
        unused = [name for name in pattern if not any(wrap.matches(name, path) for path in paths)]
        if unused:
            raise ConfigError(f"{option} must name layers that have an adapter, but {', '.join(unused)} has none.")


def _check_target(module: nn.Module, path: str) -> None:
    if isinstance(module, LoRALayer):
        raise ConfigError(f"'{path}' must be a layer without an adapter, but has one already.")
    if not isinstance(module, nn.Linear | Int8Linear | TokenEmbedding):
        hint = "the output layer is tied to the embedding: use lora_embedding" if path == "lm_head" else None
        kind = type(module).__name__
        raise ConfigError(f"LoRA must wrap a linear or token embedding layer, but '{path}' is a {kind}.", hint=hint)


def lora_modules(model: nn.Module) -> dict[str, LoRALayer]:
    """Wrapped layers by dotted path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRALayer)}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before its adapters, or the twins of its blocks, were trained.

    Raises:
        ConfigError: It has none.
    """
    modules = [*lora_modules(model).values(), *twins(model).values()]
    if not modules:
        raise ConfigError("Only a model with adapters can compute without them, but this model has none.")
    try:
        for module in modules:
            module.disabled = True
        yield
    finally:
        for module in modules:
            module.disabled = False


def freeze_all_but_lora(model: nn.Module) -> int:
    """Leave only the adapters trainable; the output layer is frozen too.

    Returns:
        Number of trainable parameters: rank * (in + out) per wrapped layer, plus out with DoRA.
    """
    model.requires_grad_(False)
    trainable = 0
    for module in lora_modules(model).values():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)
            trainable += parameter.numel()
    return trainable


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by their names in an adapter checkpoint: `<layer>.lora_a`, `<layer>.lora_b` ..."""
    return {
        f"{path}.{name}": tensor.detach()
        for path, module in lora_modules(model).items()
        for name in (*TRAINED_TENSORS, *INITIAL_TENSORS)
        if (tensor := getattr(module, name, None)) is not None
    }


@torch.no_grad()
def load_lora_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter checkpoint's tensors into the wrapped layers.

    Raises:
        CheckpointError: Names or shapes differ from the model's adapters; the message lists them all.
    """
    own = lora_state(model)
    check_lora_shapes(model, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def check_lora_shapes(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that an adapter checkpoint fits the wrapped layers.

    Raises:
        CheckpointError: Names or shapes differ from the model's adapters; the message lists them all.
    """
    own = {name: tuple(tensor.shape) for name, tensor in lora_state(model).items()}
    problems = [f"{name} is missing" for name in own if name not in shapes]
    problems += [f"{name} belongs to no wrapped layer" for name in shapes if name not in own]
    problems += [
        f"{name} is {tuple(shapes[name])} instead of {own[name]}"
        for name in own
        if name in shapes and tuple(shapes[name]) != own[name]
    ]
    if problems:
        raise CheckpointError(f"The adapter must fit the model's LoRA layers, but: {'; '.join(problems)}.")


@torch.no_grad()
def merge_lora(model: nn.Module) -> list[str]:
    """Merge the adapters into their layers, for generation; those around quantised layers stay as they are.

    Returns:
        Dotted paths of the layers that are plain again.
    """
    merged = []
    for path, module in lora_modules(model).items():
        base = module.base
        if type(base) not in (nn.Linear, TokenEmbedding):
            continue
        base.weight = nn.Parameter(module.merged_weight(), requires_grad=False)
        wrap.replace(model, [path], lambda wrapped, _: wrapped.base)  # type: ignore[arg-type, return-value]
        merged.append(path)
    return merged
