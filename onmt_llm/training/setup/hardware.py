"""How the model computes: kernels, int8 products, activation checkpointing and offloading (`performance`)."""

from __future__ import annotations

import torch
from torch import nn

from onmt_llm.config.learning import PerformanceConfig, QuantizationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.cpu import int8_matmul
from onmt_llm.nn.kernels import resolve_kernels, use_liger
from onmt_llm.nn.quantized import set_int8_products
from onmt_llm.nn.transformer import Transformer, set_offload


def check_device(performance: PerformanceConfig, device_type: str) -> None:
    """Check that the device supports the options.

    Raises:
        ConfigError: An option needs a GPU.
    """
    resolve_kernels(performance.kernels, device_type)
    if performance.offload_activations and device_type == "cpu":
        raise ConfigError(
            "offload_activations must go with a GPU, whose activations it moves to main memory, but the device is cpu.",
            hint="use_ckpting: [block] saves memory on a CPU",
        )


def set_quant_compute(model: nn.Module, quant: QuantizationConfig, device: torch.device) -> None:
    """Choose the number format that int8 layers multiply in during training (`quant_compute`)."""
    wanted = quant.quant_compute == "int8" or (quant.quant_compute == "auto" and int8_matmul.are_fast(device))
    layers = set_int8_products(model) if wanted else 0
    if layers:
        logger.info("%d layers multiply in int8 during training (quant_compute).", layers)


def set_performance_options(model: Transformer, performance: PerformanceConfig, device: torch.device) -> None:
    """Apply activation checkpointing, offloading and the choice of kernels to a model, in place."""
    set_recomputed(model, frozenset(performance.use_ckpting))
    if performance.offload_activations:
        set_offload(model)
    if resolve_kernels(performance.kernels, device.type) == "liger":
        logger.info("kernels: %d layers use Liger kernels.", use_liger(model))
