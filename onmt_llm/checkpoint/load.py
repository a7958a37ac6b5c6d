"""Load a checkpoint into a `Transformer`: build on the meta device, load, quantise, add LoRA, load its weights.

Twins of expanded blocks are added before the weights are loaded, because they start with the weights as stored.

Weights are read one tensor at a time, and a layer is quantised as soon as it has its weights, so the whole model is
never in memory in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from onmt_llm.checkpoint.adapters import (
    VARIANT_FIELDS,
    AdapterInitializer,
    adapter_spec,
    add_adapter,
    base_paths,
    check_twins,
    pair_reader,
)
from onmt_llm.checkpoint.directory import resolve_path
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import AdapterSpec, ExpansionSpec
from onmt_llm.config.model import Dtype
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.nn import wrap
from onmt_llm.nn.block_expansion import add_twins
from onmt_llm.nn.device import DTYPES
from onmt_llm.nn.layers.experts import SelectionBias
from onmt_llm.nn.lora.model import load_lora_state
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer

_FOLDERS_ABOVE = 3
"""Folders above an adapter in which a base that was moved is looked for."""


@dataclass(frozen=True)
class Placement:
    """Number formats and device of a model's weights in memory.

    Attributes:
        dtype: "fp32", "bf16", "fp16" or a torch dtype, of the weights that are not quantised; None = as stored.
        device: Where the weights go.
        quant_layers: Layers to quantise, named as `nn.wrap.replace` understands them.
        quant_type: A name in `nn.quantized.QUANT_TYPES`.
        float32_modules: Paths of modules that are in float32 whatever `dtype` is.
    """

    dtype: str | torch.dtype | None = None
    device: str | torch.device = "cpu"
    quant_layers: Sequence[str] = ()
    quant_type: str = ""
    float32_modules: Sequence[str] = ()


def load_model(
    path: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """The model at `path`, in evaluation mode. An adapter or an expansion is loaded with its base.

    Examples:
        >>> import torch
        >>> model = onmt_llm.load_model("llama")
        >>> model(torch.tensor([[1, 5, 7]])).shape
        torch.Size([1, 3, 259])

    Args:
        path: Checkpoint directory, with or without a trailing `.pt`.
        dtype: "fp32", "bf16", "fp16" or a torch dtype; None = as stored.
        device: Where the weights go.

    Raises:
        CheckpointError: The checkpoint, or its base, is missing, damaged or does not fit.
    """
    checkpoint, placement = Checkpoint.open(path), Placement(dtype, device)
    if not checkpoint.is_adapter:
        return build_model(checkpoint, placement).eval()
    base, addition = open_base(checkpoint), checkpoint.config.addition
    return build_model(base, placement, addition=addition, weights=checkpoint).eval()


def build_model(
    checkpoint: Checkpoint,
    placement: Placement = Placement(),
    *,
    addition: AdapterSpec | ExpansionSpec | None = None,
    weights: Checkpoint | None = None,
) -> Transformer:
    """A `Transformer` with the weights of `checkpoint`, which holds a whole model.

    Args:
        checkpoint: Where the weights are. If it holds an adapter beside its model, the adapter is added.
        placement: Number formats and device.
        addition: Add an adapter to these layers, or twins to these blocks.
        weights: Holds the weights of `addition`; None = a new adapter, or twins that are copies of their blocks.

    Raises:
        CheckpointError: The checkpoint is an adapter alone, or its tensors don't fit its configuration.
        ConfigError: A layer name matches nothing.
    """
    if checkpoint.is_adapter:
        raise CheckpointError(
            f"A whole model is needed, but {checkpoint.path} holds a {checkpoint.config.noun} without its base.",
            hint="merge it: onmt_llm_lora -action merge -base_model BASE -lora_weights ADAPTER -output OUT",
        )
    check_layers(checkpoint)
    with torch.device("meta"):
        model = Transformer(checkpoint.config.model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    checkpoint.check_fits(shapes)
    quantised = wrap.match(model, placement.quant_layers)
    dtype = resolve_dtype(placement.dtype, checkpoint.config.model.dtype)
    placement = replace(placement, dtype=dtype, quant_layers=quantised)
    if checkpoint.has_adapter:
        addition, weights = _stored_spec(checkpoint, addition), checkpoint
    if isinstance(addition, ExpansionSpec):
        if weights is not None:
            check_twins(weights, shapes)
        add_twins(model, addition.blocks, addition.lerp)
        placement = replace(placement, quant_layers=base_paths(quantised, addition.blocks))
        load_weights(model, pair_reader(checkpoint, weights), placement)
    elif addition is not None:
        initializer = None
        if addition.init != "default":
            initializer = AdapterInitializer(model, addition, weights, placement.quant_type)
        load_weights(model, checkpoint.tensor, placement, initializer)
        add_adapter(model, addition)
        if weights is not None:
            load_adapter(model, weights)
        elif initializer is not None:
            initializer.set_initial(model)
    else:
        load_weights(model, checkpoint.tensor, placement)
    return model


def _stored_spec(checkpoint: Checkpoint, wanted: AdapterSpec | ExpansionSpec | None) -> AdapterSpec:
    """Settings of the adapter that is stored beside its model; only its dropout may be changed."""
    stored = adapter_spec(checkpoint)
    if wanted is None:
        return stored
    if isinstance(wanted, ExpansionSpec):
        raise CheckpointError(
            f"Only a model without an adapter can be expanded, but {checkpoint.path} holds a LoRA adapter.",
            hint="merge it first: onmt_llm_lora -action merge",
        )
    fields = ("rank", "alpha", "layers", "embedding", *VARIANT_FIELDS)
    other = [
        f"{field} {getattr(stored, field)} there, {getattr(wanted, field)} in the options"
        for field in fields
        if getattr(stored, field) != getattr(wanted, field)
    ]
    if other:
        raise CheckpointError(
            f"{checkpoint.path} holds a LoRA adapter with other settings ({'; '.join(other)}).",
            hint="merge it first: onmt_llm_lora -action merge",
        )
    return stored.model_copy(update={"dropout": wanted.dropout})


def load_adapter(model: Transformer, adapter: Checkpoint) -> None:
    """Load the adapter's weights into a model that has LoRA on the same layers.

    Raises:
        CheckpointError: Names or shapes differ; lists all.
    """
    load_lora_state(model, {name: adapter.tensor(name) for name in adapter.adapter_names()})


def open_base(adapter: Checkpoint) -> Checkpoint:
    """The base of an adapter or expansion: at the path recorded in training, or relative to the adapter.

    If both were moved, it is found under its name beside the adapter, up to three folders above, or in the current
    folder, where only the same model is accepted.

    Raises:
        CheckpointError: It is missing, or another model is there.
    """
    spec = _addition(adapter)
    for place in (Path(spec.base), adapter.path / spec.base):
        if base := _checkpoint_at(place):
            check_base(base, adapter)
            return base
    name, above = Path(spec.base).name, adapter.path.resolve().parents
    other: Checkpoint | None = None
    for folder in (*above[:_FOLDERS_ABOVE], Path()) if name else ():
        base = _checkpoint_at(folder / name)
        if base and (base.fingerprint == spec.base_fingerprint or (not spec.base_fingerprint and folder == above[0])):
            check_base(base, adapter)
            logger.info("The base of %s is not at %s any more; it is at %s.", adapter.path, spec.base, base.path)
            return base
        other = other or base
    if other:
        check_base(other, adapter)
    raise CheckpointError(
        f"The base of the {adapter.config.noun} {adapter.path} must be at {spec.base}, but no checkpoint is there.",
        hint=f"put it, or a symlink to it, into {above[0]} by the name {name}; or merge the two: "
        "onmt_llm_lora -action merge -base_model BASE -lora_weights ADAPTER -output OUT",
    )


def _checkpoint_at(place: Path) -> Checkpoint | None:
    try:
        found = resolve_path(place)
    except CheckpointError:
        return None
    return Checkpoint.open(found)


def check_base(base: Checkpoint, addition: Checkpoint) -> None:
    """Refuse a base that the adapter or expansion was not trained on. (OpenNMT-py's adapters do not name a base.)

    Raises:
        CheckpointError: The fingerprints differ; names both.
    """
    spec = _addition(addition)
    if not spec.base_fingerprint:
        logger.warning("%s does not record which base it was trained on; only its shapes are checked.", addition.path)
    elif base.fingerprint != spec.base_fingerprint:
        raise CheckpointError(
            f"The {addition.config.noun} {addition.path} was trained on {spec.base} (fingerprint "
            f"{spec.base_fingerprint[:16]}), but the base given is {base.path} (fingerprint {base.fingerprint[:16]}).",
            hint="give the checkpoint that train_from named",
        )


def _addition(checkpoint: Checkpoint) -> AdapterSpec | ExpansionSpec:
    """Settings of the adapter or expansion."""
    return checkpoint.config.addition or adapter_spec(checkpoint)


def resolve_dtype(dtype: str | torch.dtype | None, stored: Dtype) -> torch.dtype:
    """The torch dtype for a name or a torch dtype; None = as stored."""
    if isinstance(dtype, torch.dtype):
        return dtype
    word = dtype or stored
    if word not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, but is '{word}'.")
    return DTYPES[word]


def check_layers(checkpoint: Checkpoint) -> None:
    """Raise a `CheckpointError` if the configuration has more layers or experts than there are tensors."""
    model, tensors = checkpoint.config.model, len(checkpoint.model_names())
    if max(model.encoder_layers + model.decoder_layers, model.experts_in_all_layers) > tensors:
        raise CheckpointError(
            f"The config.yaml of {checkpoint.path} must fit its weights, but has {model.counts}, while there are only "
            f"{tensors} tensors."
        )


def load_weights(
    model: nn.Module,
    read: Callable[[str], torch.Tensor],
    placement: Placement,
    initializer: AdapterInitializer | None = None,
) -> None:
    """Give every parameter on the meta device its weights. A layer is quantised as soon as it is complete.

    Args:
        model: A model, or a part of one.
        read: Returns the tensor of a parameter of `model` by its name.
        placement: Number formats and device.
        initializer: Of an adapter that starts from the weights.
    """
    exact = tuple(f"{path}." for path in placement.float32_modules)
    for path, module in list(model.named_modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                is_exact = path.startswith(exact) or isinstance(module, SelectionBias)
                dtype = torch.float32 if is_exact else resolve_dtype(placement.dtype, "fp32")
                tensor = read(f"{path}.{leaf}" if path else leaf).to(device=placement.device, dtype=dtype)
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
        quantised = path in placement.quant_layers
        if initializer is not None:
            initializer.subtract(module, path, quantised=quantised)
        if quantised:
            quantize(model, [path], placement.quant_type)
