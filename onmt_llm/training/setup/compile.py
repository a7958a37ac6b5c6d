"""Compile the blocks with torch.compile, one by one, so that equal blocks share the compiled code."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer

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


def timed(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches; logs how long training on the first and the second takes."""
    seconds: list[float] = []
    for batch in batches:
        start = time.perf_counter()
        yield batch
        if len(seconds) < 2:
            seconds.append(time.perf_counter() - start)
            if len(seconds) == 2:
                logger.info("compile_blocks: the first micro-batch took %.1f s, the second one %.1f s.", *seconds)
