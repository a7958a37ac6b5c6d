"""From a checkpoint to a `Transformer`: build on the meta device, load, quantise, LoRA, adapter weights; in this order.

The twins of expanded blocks are there before anything is loaded: they begin with the weights as they are stored.

Weights arrive one tensor at a time. A layer that is to be quantised is quantised as soon as it has its weights, so that
the model never stands in memory in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from onmt_llm.checkpoint.adapters import (
    VARIANT_FIELDS,
    AdapterInitializer,
    adapter_spec,
    add_adapter,
    check_twins,
    in_base,
    pair_reader,
)
from onmt_llm.checkpoint.store import Checkpoint, resolve_path
from onmt_llm.config.checkpoint import AdapterSpec, ExpansionSpec
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.nn import wrap
from onmt_llm.nn.block_expansion import add_twins
from onmt_llm.nn.device import DTYPES
from onmt_llm.nn.lora.model import load_lora_state
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer


def load_model(
    path: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """The model at `path`, ready to run; of an adapter, its base with the adapter on it; of twins, pairs of both.

    Args:
        path: Checkpoint directory, with or without a trailing `.pt`.
        dtype: "fp32", "bf16", "fp16" or a torch dtype; None = as stored.
        device: Where the weights go.

    Raises:
        CheckpointError: The checkpoint, or the base of an adapter, is missing, damaged or does not fit.
    """
    checkpoint = Checkpoint.open(path)
    if not checkpoint.is_adapter:
        return build_model(checkpoint, dtype=dtype, device=device).eval()
    base, config = open_base(checkpoint), checkpoint.config
    return build_model(
        base, dtype=dtype, device=device, lora=config.adapter, expansion=config.expansion, adapter=checkpoint
    ).eval()


def build_model(
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quant_layers: Sequence[str] = (),
    quant_type: str = "",
    lora: AdapterSpec | None = None,
    expansion: ExpansionSpec | None = None,
    adapter: Checkpoint | None = None,
    in_float32: Sequence[str] = (),
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> Transformer:
    """A `Transformer` with the weights of `checkpoint`, which holds a whole model.

    Args:
        checkpoint: Where the weights are. If it holds an adapter beside its model, the adapter is put on.
        dtype: Of the weights that are not quantised; None = as stored.
        device: Where the weights go.
        quant_layers: Layers to quantise, named as `nn.wrap.replace` understands them.
        quant_type: A name in `nn.quantized.QUANT_TYPES`.
        lora: Put an adapter on these layers: a fresh one, unless there is an `adapter`.
        expansion: Put twins beside these blocks: copies of them, unless there is an `adapter`.
        adapter: The weights of the one or the other.
        in_float32: Paths of modules that are in float32 whatever `dtype` is.
        dropout: Of embeddings and sub-layers, while training.
        attention_dropout: Of the attention weights, while training.

    Raises:
        CheckpointError: The checkpoint is an adapter alone, or its tensors don't fit its configuration.
        ConfigError: A layer name matches nothing.
    """
    if checkpoint.is_adapter:
        raise CheckpointError(
            f"{checkpoint.path} holds a {checkpoint.config.noun} alone, but a whole model is wanted.",
            hint="merge it: onmt_llm_lora -action merge -base_model BASE -lora_weights ADAPTER -output OUT",
        )
    config = checkpoint.config.model
    check_layers(checkpoint)
    with torch.device("meta"):
        model = Transformer(config, dropout=dropout, attention_dropout=attention_dropout)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    check_fits(checkpoint, shapes)
    spec = lora
    if checkpoint.has_adapter:
        spec, adapter = _own_spec(checkpoint, lora), checkpoint
    starts = None if spec is None or spec.init == "default" else AdapterInitializer(model, spec, adapter, quant_type)
    read: Callable[[str], torch.Tensor] = checkpoint.tensor
    to_quantise = wrap.match(model, quant_layers)
    if expansion is not None:
        if adapter is not None:
            check_twins(adapter, shapes)
        add_twins(model, expansion.blocks, expansion.lerp)
        read, to_quantise = pair_reader(checkpoint, adapter), in_base(to_quantise, expansion.blocks)
    _fill(
        model,
        read,
        dtype=resolve_dtype(dtype, config.dtype),
        in_float32=in_float32,
        device=torch.device(device),
        to_quantise=set(to_quantise),
        quant_type=quant_type,
        starts=starts,
    )
    if spec is not None:
        add_adapter(model, spec)
    if adapter is not None and expansion is None:
        load_adapter(model, adapter)
    elif starts is not None:
        starts.begin(model)
    return model


def _own_spec(checkpoint: Checkpoint, wanted: AdapterSpec | None) -> AdapterSpec:
    """Settings of the adapter beside the model; only its dropout may be changed."""
    own = adapter_spec(checkpoint)
    if wanted is None:
        return own
    fields = ("rank", "alpha", "layers", "embedding", *VARIANT_FIELDS)
    other = [
        f"{f} {getattr(own, f)} there, {getattr(wanted, f)} asked for"
        for f in fields
        if getattr(own, f) != getattr(wanted, f)
    ]
    if other:
        raise CheckpointError(
            f"{checkpoint.path} holds a LoRA adapter with other settings ({'; '.join(other)}).",
            hint="merge it first: onmt_llm_lora -action merge",
        )
    return own.model_copy(update={"dropout": wanted.dropout})


def load_adapter(model: Transformer, adapter: Checkpoint) -> None:
    """Put the adapter's weights into a model that carries LoRA on the same layers.

    Raises:
        CheckpointError: Names or shapes differ; lists all.
    """
    load_lora_state(model, {name: adapter.tensor(name) for name in adapter.adapter_names()})


def open_base(adapter: Checkpoint) -> Checkpoint:
    """The base that an adapter, or twins, were trained on, found where it was then, or relative to them.

    Raises:
        CheckpointError: It is not there, or another model is.
    """
    spec = _addition(adapter)
    places = [Path(spec.base), adapter.path / spec.base, adapter.path.parent / Path(spec.base).name]
    for place in places:
        try:
            found = resolve_path(place)
        except CheckpointError:
            continue
        base = Checkpoint.open(found)
        check_base(base, adapter)
        return base
    raise CheckpointError(
        f"The base of the {adapter.config.noun} {adapter.path} must be at {spec.base}, but no checkpoint is there.",
        hint="merge the two: onmt_llm_lora -action merge -base_model BASE -lora_weights ADAPTER -output OUT",
    )


def check_base(base: Checkpoint, addition: Checkpoint) -> None:
    """Refuse a base that adapter or twins were not trained on. (An adapter from OpenNMT-py does not name its base.)

    Raises:
        CheckpointError: The fingerprints differ; names both.
    """
    spec = _addition(addition)
    if not spec.base_fingerprint:
        logger.warning("%s does not say which base it was trained on; only its shapes are checked.", addition.path)
    elif base.fingerprint != spec.base_fingerprint:
        raise CheckpointError(
            f"The {addition.config.noun} {addition.path} was trained on {spec.base} (fingerprint "
            f"{spec.base_fingerprint[:16]}), but the base given is {base.path} (fingerprint {base.fingerprint[:16]}).",
            hint="give the checkpoint that train_from named",
        )


def _addition(checkpoint: Checkpoint) -> AdapterSpec | ExpansionSpec:
    """Settings of the adapter or of the twins."""
    return checkpoint.config.addition or adapter_spec(checkpoint)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model of this shape stores."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def resolve_dtype(dtype: str | torch.dtype | None, stored: Dtype) -> torch.dtype:
    """The torch dtype that a word, a torch dtype or nothing (= as stored) means."""
    if isinstance(dtype, torch.dtype):
        return dtype
    word = dtype or stored
    if word not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, but is '{word}'.")
    return DTYPES[word]


def check_layers(checkpoint: Checkpoint) -> None:
    """Raise a `CheckpointError` where the configuration has more layers than there are tensors; none is built yet."""
    model, tensors = checkpoint.config.model, len(checkpoint.model_names())
    if model.encoder_layers + model.decoder_layers > tensors:
        raise CheckpointError(
            f"The config.yaml of {checkpoint.path} must fit its weights, but says encoder_layers "
            f"{model.encoder_layers} and decoder_layers {model.decoder_layers}, where there are {tensors} tensors."
        )


def check_fits(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise one `CheckpointError` with all tensors that are missing, too many or misshaped."""
    here = set(checkpoint.model_names())
    problems = [f"missing: {name}" for name in sorted(expected.keys() - here)]
    problems += [f"not used: {name}" for name in sorted(here - expected.keys())]
    problems += [
        f"wrong shape: {name} must be {list(expected[name])}, but is {list(checkpoint.shape(name))}"
        for name in sorted(here & expected.keys())
        if checkpoint.shape(name) != expected[name]
    ]
    if problems:
        raise CheckpointError(
            f"The tensors of {checkpoint.path} do not fit its config.yaml; {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )


def _fill(
    model: Transformer,
    read: Callable[[str], torch.Tensor],
    *,
    dtype: torch.dtype,
    in_float32: Sequence[str],
    device: torch.device,
    to_quantise: Collection[str],
    quant_type: str,
    starts: AdapterInitializer | None,
) -> None:
    """Give every parameter its weights; when a layer is complete, take out what is its adapter's and quantise it."""
    exact = tuple(f"{path}." for path in in_float32)
    for path, module in list(model.named_modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                held = torch.float32 if path.startswith(exact) else dtype
                tensor = read(f"{path}.{leaf}").to(device=device, dtype=held)
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
        if starts is not None:
            starts.take_out(module, path, quantised=path in to_quantise)
        if path in to_quantise:
            quantize(model, [path], quant_type)
