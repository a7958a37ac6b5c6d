"""Build the model of a run: loaded or new, quantised, adapted or expanded, with frozen parts frozen."""

from __future__ import annotations

import torch
from torch import nn

from onmt_llm.checkpoint.adapters import add_adapter
from onmt_llm.checkpoint.load import Placement, build_model
from onmt_llm.config.learning import PerformanceConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.block_expansion import add_twins, freeze_all_but, stack_blocks
from onmt_llm.nn.device import available_memory
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.lora.model import freeze_all_but_lora
from onmt_llm.nn.quantized import QUANT_TYPES, num_parameters
from onmt_llm.nn.transformer import Transformer, parameter_shapes, set_embedding_noise, unfreeze
from onmt_llm.nn.wrap import match
from onmt_llm.optional import require
from onmt_llm.training.optim.precision import Precision, choose_precision, trainable_to_float32
from onmt_llm.training.process.dist import World
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.performance import set_performance_options, set_quant_compute
from onmt_llm.training.setup.start import Start
from onmt_llm.training.setup.word_vectors import freeze_word_vectors, load_vectors, update_vocabulary


def check_size(model: ModelConfig, *, parts: int = 1) -> None:
    """Refuse a new model whose largest matrices alone do not fit into main memory, where weights are initialised.

    Args:
        model: The architecture.
        parts: Number of processes that share it.

    Raises:
        ConfigError: The model is too large.
    """
    attention = model.heads * model.value_size * (1 if model.latent.kv_rank else 2)
    ffn = (3 if model.ffn_gated else 2) * model.mean_ffn_size(model.moe.experts)
    block = int(model.hidden_size * (attention + ffn))
    least = model.vocab_size * model.hidden_size + (model.encoder_layers + model.decoder_layers) * block
    free = available_memory()
    needed = torch.float32.itemsize * least // parts
    if free is not None and needed > free:
        raise ConfigError(
            f"hidden_size, ffn_size, experts and layers must make a model that memory can hold, but its {least:,} "
            f"weights take {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free."
        )


def build_training_model(
    config: TrainConfig, start: Start, layers: LayerPlan, precision: Precision, world: World
) -> Transformer:
    """The model ready for training, on this rank's device, with equal weights on all ranks."""
    init, performance = config.start, config.performance
    if start.weights is None:
        check_size(start.model)
        model = Transformer(start.model)
        init_weights(model, param_init=init.param_init, glorot=init.param_init_glorot)
        model.to(world.device)
    else:
        model = build_model(
            start.weights.with_model(start.stored_model),
            Placement(
                precision.weights,
                world.device,
                layers.quantised,
                layers.quant_type,
                float32_modules=() if start.newly_stacked else layers.new_blocks,
            ),
            addition=layers.beside_base,
            weights=start.adapter,
        )
        if start.newly_stacked:
            stack_blocks(model, start.newly_stacked)
        update_vocabulary(model, start, param_init=init.param_init, glorot=init.param_init_glorot)
    set_quant_compute(model, config.quantization, world.device)
    load_vectors(model, start, config.embeddings)
    freeze_untrained(model, config, layers)
    if performance.pure_bf16:
        model.to(precision.weights)
    else:
        trainable_to_float32(model)
    world.share_parameters(model)
    set_performance_options(model, performance, world.device)
    set_embedding_noise(model, config.regularization.neftune_noise_alpha)
    return model


def build_on_meta(config: TrainConfig, start: Start, layers: LayerPlan) -> tuple[Transformer, list[str]]:
    """The model on the meta device, and the paths of the layers to quantise; no weight is read.

    Raises:
        ConfigError: A layer name matches nothing, or a quantisation type is unknown.
        CheckpointError: The weights of `train_from` do not fit its configuration.
        UnsupportedError: A package is missing.
    """
    with torch.device("meta"):
        model = Transformer(start.model)
    if start.weights is not None:
        start.weights.check_fits(parameter_shapes(start.stored_model))
    quantised = match(model, layers.quantised)
    if quantised:
        QUANT_TYPES.get(layers.quant_type)
        if layers.quant_type.startswith("bnb"):
            require("bitsandbytes", f"quant_type: {layers.quant_type}")
    add_trainable_parts(model, config, layers)
    return model, quantised


def run_precision(
    performance: PerformanceConfig, layers: LayerPlan, *, loss_scale: float, device: torch.device
) -> Precision:
    """The number formats of a run that trains `layers`; see `choose_precision`."""
    return choose_precision(
        performance.model_dtype,
        lora=layers.lora is not None,
        expanded=layers.expansion is not None,
        loss_scale=loss_scale,
        device=device,
        pure_bf16=performance.pure_bf16,
    )


def add_trainable_parts(model: Transformer, config: TrainConfig, layers: LayerPlan) -> None:
    """Add new adapters or twin blocks to a model in place, and freeze everything that the run does not train."""
    if layers.lora is not None:
        add_adapter(model, layers.lora)
    if layers.twins is not None:
        add_twins(model, layers.twins.blocks, layers.twins.lerp)
    freeze_untrained(model, config, layers)


def freeze_untrained(model: Transformer, config: TrainConfig, layers: LayerPlan) -> None:
    """Freeze everything that the run does not train."""
    if layers.lora is not None:
        freeze_all_but_lora(model)
    elif layers.expansion is not None:
        freeze_all_but(model, layers.new_blocks)
    else:
        unfreeze(model)
        freeze_word_vectors(model, config.embeddings)
        freeze_stacks(model, encoder=config.run.freeze_encoder, decoder=config.run.freeze_decoder)


def freeze_stacks(model: Transformer, *, encoder: bool, decoder: bool) -> None:
    """Freeze a stack's blocks and final norm; embeddings and output layer are still trained, as in OpenNMT-py.

    Raises:
        ConfigError: The model has no such stack.
    """
    for name, wanted, stack in (("encoder", encoder, model.encoder), ("decoder", decoder, model.decoder)):
        if not wanted:
            continue
        if stack is None:
            raise ConfigError(f"freeze_{name} needs a model with an {name}, but it has {name}_layers: 0.")
        for part in (stack.layers, stack.norm):
            if part is not None:
                part.requires_grad_(False)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of all parameters, those of quantised layers included, and of the trainable ones."""
    return num_parameters(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
