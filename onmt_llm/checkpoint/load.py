"""From a checkpoint to a `Transformer`: build on the meta device, load, quantise, LoRA, adapter weights; in this order.

Weights arrive one tensor at a time. A layer that is to be quantised is quantised as soon as it has its weights, so that
the model never stands in memory in full precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from onmt_llm.checkpoint.adapters import VARIANT_FIELDS, Starts, adapter_spec, put_lora
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.nn import wrap
from onmt_llm.nn.lora import load_lora_state
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    path: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """The model at `path`, ready to run; of an adapter, its base with the adapter on it.

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
    spec = adapter_spec(checkpoint)
    return build_model(open_base(checkpoint), dtype=dtype, device=device, lora=spec, adapter=checkpoint).eval()


def build_model(
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quant_layers: Sequence[str] = (),
    quant_type: str = "",
    lora: AdapterSpec | None = None,
    adapter: Checkpoint | None = None,
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
        adapter: Its weights.
        dropout: Of embeddings and sub-layers, while training.
        attention_dropout: Of the attention weights, while training.

    Raises:
        CheckpointError: The checkpoint is an adapter alone, or its tensors don't fit its configuration.
        ConfigError: A layer name matches nothing.
    """
    if checkpoint.is_adapter:
        raise CheckpointError(
            f"{checkpoint.path} holds an adapter alone, but a whole model is wanted.",
            hint="merge it: onmt_llm_lora -action merge -base_model BASE -lora_weights ADAPTER -output OUT",
        )
    config = checkpoint.config.model
    with torch.device("meta"):
        model = Transformer(config, dropout=dropout, attention_dropout=attention_dropout)
    check_fits(checkpoint, {name: tuple(p.shape) for name, p in model.named_parameters()})
    spec = lora
    if checkpoint.has_adapter:
        spec, adapter = _own_spec(checkpoint, lora), checkpoint
    starts = None if spec is None or spec.init == "default" else Starts(model, spec, adapter, quant_type)
    _fill(
        model,
        checkpoint,
        dtype=resolve_dtype(dtype, config.dtype),
        device=torch.device(device),
        quant_layers=quant_layers,
        quant_type=quant_type,
        starts=starts,
    )
    if spec is not None:
        put_lora(model, spec)
    if adapter is not None:
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
    """The base that an adapter was trained on, found where it was then, or relative to the adapter.

    Raises:
        CheckpointError: It is not there, or another model is.
    """
    spec = adapter_spec(adapter)
    places = [Path(spec.base), adapter.path / spec.base, adapter.path.parent / Path(spec.base).name]
    for place in places:
        try:
            base = Checkpoint.open(place)
        except CheckpointError:
            continue
        check_base(base, adapter)
        return base
    raise CheckpointError(
        f"The base of the adapter {adapter.path} must be at {spec.base}, but no checkpoint is there.",
        hint="merge the two: onmt_llm_lora -action merge -base_model BASE -lora_weights ADAPTER -output OUT",
    )


def check_base(base: Checkpoint, adapter: Checkpoint) -> None:
    """Refuse a base that the adapter was not trained on. (An adapter from OpenNMT-py has no fingerprint of its base.)

    Raises:
        CheckpointError: The fingerprints differ; names both.
    """
    spec = adapter_spec(adapter)
    if not spec.base_fingerprint:
        logger.warning("%s does not say which base it was trained on; only its shapes are checked.", adapter.path)
    elif base.fingerprint != spec.base_fingerprint:
        raise CheckpointError(
            f"The adapter {adapter.path} was trained on {spec.base} (fingerprint {spec.base_fingerprint[:16]}), "
            f"but the base given is {base.path} (fingerprint {base.fingerprint[:16]}).",
            hint="give the checkpoint that train_from named",
        )


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
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quant_layers: Sequence[str],
    quant_type: str,
    starts: Starts | None,
) -> None:
    """Give every parameter its weights; when a layer is complete, take out what is its adapter's and quantise it."""
    to_quantise = set(wrap.match(model, quant_layers)) if quant_layers else set()
    for path, module in list(model.named_modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                tensor = checkpoint.tensor(f"{path}.{leaf}").to(device=device, dtype=dtype)
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
        if starts is not None:
            starts.take_out(module, path, quantised=path in to_quantise)
        if path in to_quantise:
            quantize(model, [path], quant_type)
