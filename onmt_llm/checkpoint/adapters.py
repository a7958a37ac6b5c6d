"""What a checkpoint adds to a base model: a LoRA adapter, or an expansion (twins of some blocks).

An expanded block is a pair: the frozen block of the base and its twin, a trainable copy (`nn.block_expansion`). The
checkpoint of the base holds the first, that of the expansion the second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import AdapterSpec, ExpansionSpec
from onmt_llm.errors import CheckpointError
from onmt_llm.nn import wrap
from onmt_llm.nn.block_expansion import TWIN
from onmt_llm.nn.lora.init import initial_adapter, removed_product, set_initial, subtract_product
from onmt_llm.nn.lora.model import add_lora, check_ranks
from onmt_llm.nn.lora.variant import INITIAL_TENSORS, LoRAVariant
from onmt_llm.nn.transformer import Transformer

_IN_PAIR = re.compile(rf"((?:encoder|decoder)\.layers\.\d+)\.(?:base|{TWIN})\.(.+)")
_IN_BLOCK = re.compile(r"((?:encoder|decoder)\.layers\.\d+)\.(.+)")
VARIANT_FIELDS = ("rslora", "dora", "rank_pattern", "alpha_pattern", "init", "init_iter")
"""Settings in which an adapter may differ from plain LoRA."""


def adapter_spec(checkpoint: Checkpoint) -> AdapterSpec:
    """The settings of a checkpoint's adapter."""
    if checkpoint.config.adapter is None:
        raise CheckpointError(
            f"{checkpoint.path} must hold a LoRA adapter, but its config.yaml has no `adapter` section."
        )
    return checkpoint.config.adapter


class AdapterInitializer:
    """Initialise adapters from the weights of their layers (PiSSA, LoftQ).

    While weights are loaded, `subtract` moves a low-rank product out of each layer; `set_initial` then gives it to the
    adapter of the wrapped layer.

    Args:
        model: Before its layers are quantised or wrapped.
        spec: The adapter's settings.
        adapter: The stored adapter; None = a new one.
        quant_type: Number format of the quantised layers.
    """

    def __init__(self, model: Transformer, spec: AdapterSpec, adapter: Checkpoint | None, quant_type: str) -> None:
        self._spec, self._adapter, self._quant_type = spec, adapter, quant_type
        paths = wrap.match(model, spec.layers) if spec.layers else []
        check_ranks(model, paths, spec.rank, lora_variant(spec))
        self._layers = {path for path in paths if isinstance(model.get_submodule(path), nn.Linear)}
        self._found: dict[str, dict[str, torch.Tensor]] = {}

    def subtract(self, linear: nn.Module, path: str, *, quantised: bool) -> None:
        """Subtract the initial adapter from the layer at `path`, whose weights are loaded."""
        if path not in self._layers:
            return
        spec = self._spec
        rank, scale = lora_variant(spec).size(path, spec.rank, spec.alpha)
        if self._adapter is None:
            tensors = self._found[path] = initial_adapter(
                linear.weight,  # type: ignore[arg-type]
                init=spec.init,
                rank=rank,
                scale=scale,
                iterations=spec.init_iter,
                quant_type=self._quant_type if quantised else "",
            )
        else:
            stored = set(self._adapter.adapter_names())
            names = [name for name in INITIAL_TENSORS if f"{path}.{name}" in stored]
            tensors = {name: self._adapter.tensor(f"{path}.{name}") for name in names}
        product = removed_product(tensors, init=spec.init, quantised=quantised)
        if product is not None:
            subtract_product(linear, product, scale)

    def set_initial(self, model: Transformer) -> None:
        """Set the adapters of the wrapped layers to what was subtracted."""
        for path, tensors in self._found.items():
            set_initial(model.get_submodule(path), tensors)  # type: ignore[arg-type]


def add_adapter(model: Transformer, spec: AdapterSpec) -> list[str]:
    """Add an adapter to the layers that `spec` names; returns their paths."""
    return add_lora(
        model,
        spec.layers,
        rank=spec.rank,
        alpha=spec.alpha,
        dropout=spec.dropout,
        embedding=spec.embedding,
        variant=lora_variant(spec),
    )


def lora_variant(spec: AdapterSpec) -> LoRAVariant:
    """How the adapter differs from plain LoRA."""
    return LoRAVariant(spec.rslora, spec.dora, spec.rank_pattern, spec.alpha_pattern, spec.init, spec.init_iter)


def short_names(layers: Sequence[str], weights: Collection[str]) -> list[str]:
    """`q_proj` if the adapter is on every q_proj of the model; otherwise the full paths.

    Args:
        layers: Paths of the layers with an adapter.
        weights: Names of all tensors of the model.
    """
    leaves = sorted({layer.rpartition(".")[2] for layer in layers})
    paths = {name.removesuffix(".weight") for name in weights}
    meant = {path for path in paths if path.rpartition(".")[2] in leaves}
    return leaves if meant == set(layers) else list(layers)


def expansion_spec(checkpoint: Checkpoint) -> ExpansionSpec:
    """The settings of an expansion's checkpoint.

    Raises:
        CheckpointError: It holds no expansion.
    """
    spec = checkpoint.config.expansion
    if spec is None or spec.type != "concat" or not checkpoint.is_adapter:
        raise CheckpointError(
            f"{checkpoint.path} must hold a block expansion, but does not.",
            hint="models trained with expand_type: stack need no merging",
        )
    return spec


def pair_reader(base: Checkpoint, twins: Checkpoint | None) -> Callable[[str], torch.Tensor]:
    """A function that reads a tensor of an expanded model by its name there.

    Args:
        base: Holds the weights of the frozen blocks and of everything outside the pairs.
        twins: Holds the weights of the twins; None = new twins, which start as copies of their blocks.
    """

    def read(name: str) -> torch.Tensor:
        if twins is not None and f".{TWIN}." in name:
            return twins.tensor(name)
        return base.tensor(_IN_PAIR.sub(r"\1.\2", name))

    return read


def base_paths(paths: Sequence[str], blocks: Collection[str]) -> list[str]:
    """Paths of a plain model's layers after `blocks` are expanded: in the frozen halves of the pairs."""
    return [
        f"{found[1]}.base.{found[2]}" if (found := _IN_BLOCK.fullmatch(path)) and found[1] in blocks else path
        for path in paths
    ]


def check_twins(twins: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise one `CheckpointError` that lists all tensors that are missing, superfluous or of the wrong shape.

    Args:
        twins: The expansion's checkpoint.
        shapes: Shapes of the base's tensors.
    """
    wanted = {twin: shapes[name] for name in shapes if (twin := twin_name(name, expansion_spec(twins).blocks))}
    here = set(twins.adapter_names())
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - here)]
    problems += [f"{name} belongs to no block" for name in sorted(here - wanted.keys())]
    problems += [
        f"{name} is {list(twins.shape(name))} instead of {list(wanted[name])}"
        for name in sorted(here & wanted.keys())
        if twins.shape(name) != wanted[name]
    ]
    if problems:
        raise CheckpointError(f"The twins of {twins.path} must fit their base, but: {'; '.join(problems)}.")


def twin_name(name: str, blocks: Collection[str]) -> str | None:
    """Name of the twin's tensor that corresponds to a tensor of the base; None if its block has no twin."""
    found = _IN_BLOCK.fullmatch(name)
    return f"{found[1]}.{TWIN}.{found[2]}" if found and found[1] in blocks else None
