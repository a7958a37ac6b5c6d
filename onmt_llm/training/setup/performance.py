"""The options of `performance`: kernels, int8 products, recomputing and offloading of activations, and torch.compile.

The blocks are compiled one by one, so that equal blocks share the compiled code.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from onmt_llm.config.learning import PerformanceConfig, QuantizationConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.cpu import int8_matmul
from onmt_llm.nn.kernels import resolve_kernels, use_liger
from onmt_llm.nn.quantized import set_int8_products
from onmt_llm.nn.transformer import Transformer, set_offload
from onmt_llm.nn.uncompiled import leave_uncompiled


def check_device(performance: PerformanceConfig, device_type: str) -> None:
    """Check that the device supports the options.

    Raises:
        ConfigError: An option needs a GPU.
    """
    resolve_kernels(performance.kernels, device_type)
    if performance.offload_activations and device_type == "cpu":
        raise ConfigError(
            "offload_activations needs a GPU, whose activations it moves to main memory, but the device is cpu.",
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


VARIANTS = 64
"""Graphs that may be compiled for a block: with and without a gradient of its input or output (validation), with and
without a mask, for one row or many; one more for each pair of dropout rates of a schedule."""


def compile_blocks(model: Transformer, device: torch.device, *, backend: str = "inductor") -> None:
    """Compile the blocks in place: parameter names stay the same, and blocks are faster after the first call.

    Args:
        model: The model, with adapters and quantised layers in place.
        device: Device of the model.
        backend: Backend of torch.compile.

    Raises:
        UnsupportedError: torch.compile does not work on this machine.
    """
    _check_compiler(device, backend)
    leave_uncompiled()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # Otherwise a batch of two rows shares its symbol with cosine and sine, and the code is compiled for two rows only.
    torch.fx.experimental._config.use_duck_shape = False
    for stack in (model.encoder, model.decoder):
        for block in () if stack is None else stack.layers:
            block.compile(dynamic=True, backend=backend)


def _check_compiler(device: torch.device, backend: str) -> None:
    """Compile a trivial function.

    Raises:
        UnsupportedError: It cannot be compiled.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        raise UnsupportedError(
            f"compile_blocks needs a C++ compiler that torch.compile can use, but compiling fails: {_reason(error)}",
            hint="install one (g++, with the headers of Python), or name it in the environment variable CXX; "
            "or leave compile_blocks out",
        ) from error


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def log_compile_time(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches; log how long training on the first (with compiling) and the second one takes."""
    seconds: list[float] = []
    for batch in batches:
        start = time.perf_counter()
        yield batch
        if len(seconds) < 2:
            seconds.append(time.perf_counter() - start)
            if len(seconds) == 2:
                logger.info("compile_blocks: the first micro-batch took %.1f s, the second one %.1f s.", *seconds)
