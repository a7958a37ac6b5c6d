"""Build a model that is sharded among the processes, none of which ever holds more than its part.

The model is quantised, adapted and sharded on the meta device, so each process allocates its part alone. Then tensors
are read, or drawn, one after the other, and each process keeps its rows of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from onmt_llm.checkpoint.adapters import base_paths, check_twins
from onmt_llm.checkpoint.load import load_model, resolve_dtype
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import Dtype
from onmt_llm.config.train import TrainConfig
from onmt_llm.nn import wrap
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.lora.layers import LoRALayer
from onmt_llm.nn.lora.model import check_lora_shapes
from onmt_llm.nn.quantized import Int8Linear, quantize_rows
from onmt_llm.nn.transformer import Transformer, parameter_shapes, set_embedding_noise
from onmt_llm.training.optim.precision import Precision, trainable_to_float32
from onmt_llm.training.parallel import TrainingModule
from onmt_llm.training.process.shards import fill, fill_drawn
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.model import build_on_meta, check_size
from onmt_llm.training.setup.performance import compile_blocks, set_performance_options, set_quant_compute
from onmt_llm.training.setup.start import Start

_WRAPPED = re.compile(r"\.(base|twin)(?=\.)")


def needs_whole_weights(config: TrainConfig, start: Start, layers: LayerPlan) -> str:
    """The options for which each process has to load the whole model before it is sharded; empty = none."""
    vectors, lora = config.embeddings, layers.lora
    options = {
        "update_vocab": start.old_codec is not None,
        "expand_type: stack": bool(start.newly_stacked),
        "use_dora": lora is not None and lora.dora,
        "lora_init": lora is not None and lora.init != "default",
        "src_embeddings and tgt_embeddings": any(
            (vectors.both_embeddings, vectors.src_embeddings, vectors.tgt_embeddings)
        ),
    }
    return ", ".join(option for option, is_used in options.items() if is_used)


def build_sharded(
    config: TrainConfig,
    start: Start,
    layers: LayerPlan,
    precision: Precision,
    *,
    device: torch.device,
    parts: int,
    shard: Callable[[TrainingModule], None],
    reference: Transformer | None = None,
) -> TrainingModule:
    """The model ready for training, of which each process has only ever held its part.

    Args:
        config: All options; none of those of `needs_whole_weights` is used.
        start: What the run starts from.
        layers: Adapters, twins and quantised layers.
        precision: Number formats.
        device: Device of this process.
        parts: Number of processes that share one copy of the weights.
        shard: Shards a model on the meta device.
        reference: The reference model of a preference loss; sharded too if it is on the meta device.

    Raises:
        ConfigError: A new model does not fit into main memory.
        CheckpointError: The weights do not fit the configuration, or are damaged.
    """
    performance = config.performance
    if start.weights is None and device.type == "cpu":
        check_size(start.model, parts=parts)
    model, quantised = build_on_meta(config, start, layers)
    _quantise_on_meta(model, quantised, layers)
    model.to(precision.weights)
    if not performance.pure_bf16:
        trainable_to_float32(model)
    set_performance_options(model, performance, device)
    set_embedding_noise(model, config.regularization.neftune_noise_alpha)
    if performance.compile_blocks:
        compile_blocks(model, device)
    if layers.lora is not None and start.adapter is not None:
        check_lora_shapes(model, {name: start.adapter.shape(name) for name in start.adapter.adapter_names()})
    elif layers.twins is not None and start.adapter is not None:
        check_twins(start.adapter, parameter_shapes(start.stored_model))
    shards_reference = reference is not None and is_on_meta(reference)
    module = TrainingModule(model, reference if shards_reference else None)
    shard(module)
    module.to_empty(device=device)
    if start.weights is None:
        _draw(model, param_init=config.start.param_init, glorot=config.start.param_init_glorot)
    else:
        read_weights(model, start.weights, start.adapter, dtype=precision.weights)
    if module.reference is not None:
        weights = Checkpoint.open(str(config.preference.reference_model))
        read_weights(module.reference, weights, dtype=precision.weights)
    set_quant_compute(model, config.quantization, device)
    return module


def open_reference(path: str, dtype: Dtype, device: torch.device) -> Transformer:
    """A model on the meta device, for `build_sharded`; with an adapter it is loaded, and stays whole."""
    checkpoint = Checkpoint.open(path)
    if checkpoint.has_adapter:
        return load_model(path, dtype, device)
    with torch.device("meta"):
        model = Transformer(checkpoint.config.model)
    checkpoint.check_fits({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    return model.to(resolve_dtype(dtype, checkpoint.config.model.dtype)).eval()


def is_on_meta(model: nn.Module) -> bool:
    """Whether a model has no memory yet."""
    return next(model.parameters()).is_meta


def _quantise_on_meta(model: Transformer, paths: list[str], layers: LayerPlan) -> None:
    """Replace the layers to quantise, inside adapters and pairs of blocks too."""
    if layers.twins is not None:
        paths = base_paths(paths, layers.twins.blocks)
    paths = [f"{path}.base" if isinstance(model.get_submodule(path), LoRALayer) else path for path in paths]
    wrap.replace(model, paths, lambda linear, _: Int8Linear.without_values(linear))  # type: ignore[arg-type]


@torch.no_grad()
def _draw(model: Transformer, *, param_init: float, glorot: bool) -> None:
    """Draw the weights of a new model: the values of one process with the same seed."""
    for module in model.modules():
        # torch draws initial values where a model is built outside the meta device. They are overwritten, but the
        # random numbers are used up.
        if isinstance(module, nn.Linear | nn.Embedding):
            fill_drawn(module.weight, Tensor.normal_ if isinstance(module, nn.Embedding) else Tensor.uniform_)
        if isinstance(module, nn.Linear) and module.bias is not None:
            fill_drawn(module.bias, Tensor.uniform_)
    init_weights(model, param_init=param_init, glorot=glorot, give=fill_drawn)


@torch.no_grad()
def read_weights(
    model: Transformer, weights: Checkpoint, adapter: Checkpoint | None = None, *, dtype: torch.dtype
) -> None:
    """Give a sharded model the weights of a checkpoint.

    Args:
        model: With memory for its parts.
        weights: Holds the whole model.
        adapter: Holds the weights of its adapters or twins; None = new ones.
        dtype: Type in which weights are quantised.
    """
    for path, module in model.named_modules():
        if isinstance(module, Int8Linear):
            name = _WRAPPED.sub("", f"{path}.").rstrip(".")
            whole = weights.tensor(f"{name}.weight").to(module.weight.device, dtype)
            for parameter, values in zip((module.weight, module.scale), quantize_rows(whole), strict=True):
                fill(parameter, [values])
            if module.bias is not None:
                fill(module.bias, weights.blocks(f"{name}.bias"))
        elif isinstance(module, LoRALayer):
            _read_adapter(module, path, adapter)
        else:
            for leaf, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{leaf}"
                is_base = ".twin." not in name
                fill(
                    parameter,
                    weights.blocks(_WRAPPED.sub("", name)) if adapter is None or is_base else adapter.blocks(name),
                )


def _read_adapter(module: LoRALayer, path: str, adapter: Checkpoint | None) -> None:
    if adapter is not None:
        for leaf, parameter in module.named_parameters(recurse=False):
            fill(parameter, adapter.blocks(f"{path}.{leaf}"))
        return
    a = torch.empty(module.lora_a.shape)
    module.draw_a(a)
    fill(module.lora_a, [a])
    fill(module.lora_b, [torch.zeros(module.lora_b.shape)])
