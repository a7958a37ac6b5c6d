"""Blocks compiled by torch.compile: one by one, so that all blocks of a kind share what was compiled for the first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer

VARIANTS = 64
"""Graphs that may be compiled of a block: with and without a gradient of its input or its output (validation), with and
without a mask, of one row or many; one more for each pair of dropout rates of a schedule."""


def compile_blocks(model: Transformer, device: torch.device, *, backend: str = "inductor") -> None:
    """Compile the blocks, in place: each keeps its names, and computes faster after its first call.

    Args:
        model: With all that wraps its layers.
        device: Where it computes.
        backend: Who makes code of the graphs.

    Raises:
        UnsupportedError: Nothing can be compiled here.
    """
    _check_compiler(device, backend)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # Else two rows of a batch are taken for the same two as those of cosine and sine, and compiled for two rows alone.
    torch.fx.experimental._config.use_duck_shape = False
    for stack in (model.encoder, model.decoder):
        for block in () if stack is None else stack.layers:
            block.compile(dynamic=True, backend=backend)


def _check_compiler(device: torch.device, backend: str) -> None:
    """Compile next to nothing.

    Raises:
        UnsupportedError: That does not work.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        raise UnsupportedError(
            f"compile_blocks needs a C++ compiler that torch.compile can use, but that fails: {_reason(error)}",
            hint="install one (g++, with the headers of Python), or name it in the environment variable CXX; "
            "or leave compile_blocks out",
        ) from error


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def timed(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; what the first one takes to be learned from is compared with the second one, and logged."""
    seconds: list[float] = []
    for batch in batches:
        start = time.perf_counter()
        yield batch
        if len(seconds) < 2:
            seconds.append(time.perf_counter() - start)
            if len(seconds) == 2:
                logger.info("compile_blocks: the first micro-batch took %.1f s, the second one %.1f s.", *seconds)
