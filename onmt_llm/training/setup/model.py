"""The model of a run: loaded or new, quantised, adapted or expanded, frozen where it must be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from onmt_llm.checkpoint.adapters import add_adapter
from onmt_llm.checkpoint.load import build_model, check_fits, expected_shapes
from onmt_llm.config.checkpoint import AdapterSpec, ExpansionSpec
from onmt_llm.config.compat.layer_names import layer_name
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.training.adapters import LoraConfig, QuantizationConfig
from onmt_llm.config.training.performance import PerformanceConfig
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.block_expansion import add_twins, freeze_all_but, new_blocks, stack_blocks
from onmt_llm.nn.cpu import int8_matmul as int8_products
from onmt_llm.nn.device import available_memory
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.kernels import resolve_kernels, use_liger
from onmt_llm.nn.lora.model import freeze_all_but_lora
from onmt_llm.nn.quantized import QUANT_TYPES, set_int8_products
from onmt_llm.nn.transformer import Transformer, set_embedding_noise, set_offload
from onmt_llm.nn.wrap import match
from onmt_llm.optional import require
from onmt_llm.training.dist import World
from onmt_llm.training.optim.precision import Precision, hold_trained_in_float32
from onmt_llm.training.setup.start import Start
from onmt_llm.training.setup.word_vectors import freeze_word_vectors, load_vectors, update_vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Layers:
    """What happens to the layers of a model.

    Attributes:
        lora: Settings of the adapter, without its base; None = there is none.
        expansion: The blocks that are expanded, likewise. Without either, everything is trained.
        quantised: Names of the layers to quantise.
        quant_type: Their number format; empty without any.
    """

    lora: AdapterSpec | None = None
    expansion: ExpansionSpec | None = None
    quantised: tuple[str, ...] = ()
    quant_type: str = ""

    @property
    def twins(self) -> ExpansionSpec | None:
        """The expansion, if its blocks stand beside others."""
        return self.expansion if self.expansion is not None and self.expansion.type == "concat" else None

    @property
    def beside_base(self) -> AdapterSpec | ExpansionSpec | None:
        """What is trained, and saved, without the base that it belongs to."""
        return self.lora or self.twins

    @property
    def new_blocks(self) -> list[str]:
        """Paths of the expansion's blocks in the model that is trained."""
        return [] if self.expansion is None else new_blocks(self.expansion.blocks, self.expansion.type)


def resolve_layers(config: TrainConfig, start: Start) -> Layers:
    """Adapters and quantised layers that the options, or the adapter to begin with, ask for.

    Raises:
        ConfigError: Quantised layers without adapters or twins, or other adapters than those to go on with.
    """
    gated = start.model.ffn_gated
    spec, expansion = _adapter(config.lora, start, gated), start.expansion
    if spec is not None and expansion is not None:
        raise ConfigError(
            "lora_layers and lora_embedding must be left out where expanded blocks are trained.",
            hint="merge the twins first: onmt_llm_lora -action merge"
            if expansion.type == "concat"
            else "reset_optim: all begins a new run, on the deeper model as a whole",
        )
    if (spec or expansion) and (config.run.freeze_encoder or config.run.freeze_decoder):
        what = "LoRA, which trains its adapters" if expansion is None else "expanded blocks, which are trained"
        raise ConfigError(
            f"freeze_encoder and freeze_decoder must be off with {what} alone.",
            hint="name the layers to adapt more narrowly, e.g. lora_layers: [cross_attn.q_proj]"
            if expansion is None
            else "name the blocks to expand with expand_stacks and expand_blocks",
        )
    quantised, quant_type = _quantised(config.quantization, start.adapter_spec or expansion, gated)
    if quantised and Layers(spec, expansion).beside_base is None:
        raise ConfigError(
            f"quant_layers must go with LoRA or expand_type: concat, since quantised weights are neither trained nor "
            f"saved, but there is neither (quant_layers: {', '.join(quantised)})."
        )
    if spec is not None and spec.init == "loftq" and not quantised:
        raise ConfigError(
            "lora_init: loftq must go with quant_layers, since it makes up for what they lose, but there are none.",
            hint="lora_init: pissa works on layers of full precision",
        )
    update = {"quant_layers": list(quantised), "quant_type": quant_type}
    return Layers(
        None if spec is None else spec.model_copy(update=update),
        None if expansion is None else expansion.model_copy(update=update),
        quantised,
        quant_type,
    )


_ADAPTER_OPTIONS = {
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "layers": "lora_layers",
    "embedding": "lora_embedding",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
    "init": "lora_init",
    "init_iter": "lora_init_iter",
}
"""What of an adapter stays as it is when training goes on, by its option."""


def _adapter(lora: LoraConfig, start: Start, gated: bool) -> AdapterSpec | None:
    def names(pattern: Mapping[str, T]) -> dict[str, T]:
        return {layer_name(name, gated=gated): value for name, value in pattern.items()}

    wanted = AdapterSpec(
        rank=lora.lora_rank,
        alpha=lora.lora_alpha,
        dropout=lora.lora_dropout,
        layers=[layer_name(name, gated=gated) for name in lora.lora_layers],
        embedding=lora.lora_embedding,
        rslora=lora.use_rslora,
        dora=lora.use_dora,
        rank_pattern=names(lora.lora_rank_pattern),
        alpha_pattern=names(lora.lora_alpha_pattern),
        init=lora.lora_init,
        init_iter=lora.lora_init_iter,
        base="",
        base_fingerprint="",
    )
    stored = start.adapter_spec
    if stored is None:
        return wanted if wanted.layers or wanted.embedding else None
    differing = [
        f"{option} is {getattr(wanted, name)} in the options and {getattr(stored, name)} in the adapter"
        for name, option in _ADAPTER_OPTIONS.items()
        if option in lora.model_fields_set and getattr(wanted, name) != getattr(stored, name)
    ]
    if differing:
        assert start.adapter is not None
        raise ConfigError(
            f"{'; '.join(differing)}: training goes on with {start.adapter.path} as it is.",
            hint="leave these options out; or merge the adapter into its base and train a new one on that",
        )
    return (
        stored.model_copy(update={"dropout": lora.lora_dropout}) if "lora_dropout" in lora.model_fields_set else stored
    )


def _quantised(
    quant: QuantizationConfig, stored: AdapterSpec | ExpansionSpec | None, gated: bool
) -> tuple[tuple[str, ...], str]:
    if stored is not None and "quant_layers" not in quant.model_fields_set:
        return tuple(stored.quant_layers), quant.quant_type or stored.quant_type
    return tuple(
        layer_name(name, gated=gated) for name in quant.quant_layers
    ), quant.resolved_type if quant.quant_layers else ""


def _check_size(model: ModelConfig) -> None:
    """Refuse a new model that main memory, where weights are made, cannot hold: by its largest matrices alone.

    Raises:
        ConfigError: It is too large.
    """
    attention = 2 * model.heads * model.size_per_head
    block = model.hidden_size * (attention + (3 if model.ffn_gated else 2) * model.ffn_size)
    least = model.vocab_size * model.hidden_size + (model.encoder_layers + model.decoder_layers) * block
    free = available_memory()
    needed = torch.float32.itemsize * least
    if free is not None and needed > free:
        raise ConfigError(
            f"hidden_size, ffn_size and the layers must make a model that memory can hold, but its {least:,} weights "
            f"take {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free."
        )


def build(config: TrainConfig, start: Start, layers: Layers, precision: Precision, world: World) -> Transformer:
    """The model as it will be trained, on the world's device, equal on all ranks."""
    begin, performance = config.start, config.performance
    if start.weights is None:
        _check_size(start.model)
        model = Transformer(start.model)
        init_weights(model, param_init=begin.param_init, glorot=begin.param_init_glorot)
        model.to(world.device)
    else:
        start.weights.config = start.weights.config.model_copy(update={"model": start.stored_model})
        model = build_model(
            start.weights,
            dtype=precision.weights,
            device=world.device,
            quant_layers=layers.quantised,
            quant_type=layers.quant_type,
            lora=layers.lora,
            expansion=layers.twins,
            adapter=start.adapter,
            in_float32=() if start.newly_stacked else layers.new_blocks,
        )
        if start.newly_stacked:
            stack_blocks(model, start.newly_stacked)
        update_vocabulary(model, start, param_init=begin.param_init, glorot=begin.param_init_glorot)
    compute_quantised_in(model, config.quantization, world.device)
    load_vectors(model, start, config.embeddings)
    _freeze(model, config, layers)
    if layers.expansion is not None:
        # Norms of new blocks are float32 among frozen bf16 ones; that torch has no fused kernel for it is all right.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    if performance.pure_bf16:
        model.to(precision.weights)
    else:
        hold_trained_in_float32(model)
    world.share_parameters(model)
    set_recomputed(model, frozenset(performance.use_ckpting))
    if performance.offload_activations:
        set_offload(model)
    if resolve_kernels(performance.kernels, world.device.type) == "liger":
        logger.info("kernels: those of Liger compute %d layers.", use_liger(model))
    set_embedding_noise(model, config.regularization.neftune_noise_alpha)
    return model


def compute_quantised_in(model: nn.Module, quant: QuantizationConfig, device: torch.device) -> None:
    """What int8 layers multiply in while they are trained, by `quant_compute`."""
    wanted = quant.quant_compute == "int8" or (quant.quant_compute == "auto" and int8_products.are_fast(device))
    layers = set_int8_products(model) if wanted else 0
    if layers:
        logger.info("%d layers multiply in int8 while they are trained (quant_compute).", layers)


def check_device(performance: PerformanceConfig, device_type: str) -> None:
    """Make sure that the device can do what is asked of it.

    Raises:
        ConfigError: Something needs a GPU.
    """
    resolve_kernels(performance.kernels, device_type)
    if performance.offload_activations and device_type == "cpu":
        raise ConfigError(
            "offload_activations must go with a GPU, whose activations it takes to main memory, but the device is cpu.",
            hint="use_ckpting: [block] saves memory on a CPU",
        )


def sketch(config: TrainConfig, start: Start, layers: Layers) -> tuple[Transformer, list[str]]:
    """The model on the meta device, and the paths of the layers that would be quantised; no weight is read.

    Raises:
        ConfigError: A layer name matches nothing, or a quantisation type is unknown.
        CheckpointError: The weights of `train_from` do not fit its configuration.
        UnsupportedError: A package is missing.
    """
    with torch.device("meta"):
        model = Transformer(start.model)
    if start.weights is not None:
        check_fits(start.weights, expected_shapes(start.stored_model))
    quantised = match(model, layers.quantised)
    if quantised:
        QUANT_TYPES.get(layers.quant_type)
        if layers.quant_type.startswith("bnb"):
            require("bitsandbytes", f"quant_type: {layers.quant_type}")
    adapt(model, config, layers)
    return model, quantised


def adapt(model: Transformer, config: TrainConfig, layers: Layers) -> None:
    """Give a model, in place, new adapters or twins of blocks, and leave trainable what the run trains."""
    if layers.lora is not None:
        add_adapter(model, layers.lora)
    if layers.twins is not None:
        add_twins(model, layers.twins.blocks, layers.twins.lerp)
    _freeze(model, config, layers)


def _freeze(model: Transformer, config: TrainConfig, layers: Layers) -> None:
    """Leave trainable what the run trains."""
    if layers.lora is not None:
        freeze_all_but_lora(model)
    elif layers.expansion is not None:
        freeze_all_but(model, layers.new_blocks)
    else:
        model.requires_grad_(True)
        freeze_word_vectors(model, config.embeddings)
        freeze_stacks(model, encoder=config.run.freeze_encoder, decoder=config.run.freeze_decoder)


def freeze_stacks(model: Transformer, *, encoder: bool, decoder: bool) -> None:
    """Leave a stack's blocks and final norm untrained; embeddings and output layer go on learning, as in OpenNMT-py.

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
