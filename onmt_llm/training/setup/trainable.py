"""Which parameters a run trains: add adapters or new blocks, and freeze everything else."""

from __future__ import annotations

from torch import nn

from onmt_llm.checkpoint.adapters import add_adapter
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.block_expansion import add_twins, freeze_all_but
from onmt_llm.nn.lora.model import freeze_all_but_lora
from onmt_llm.nn.quantized import num_parameters
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.word_vectors import freeze_word_vectors


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
        model.requires_grad_(True)
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
