"""Steps of one token as CUDA graphs: the GPU replays their operations without waiting for Python to start each.

A step is recorded for the buffers of one KV cache. It is worth that once the rows of a batch stay as they are for a
while: buffers change when rows join or leave, when they are reordered (beams), and when they grow.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.static_cache import StaticCache, can_be_static
from onmt_llm.nn.transformer import Transformer

_STEADY = 3
"""Steps with the same buffers before one is recorded."""
_WARM_UP = 2


class StaticSteps:
    """Takes over the steps of one token once they are worth a graph.

    Args:
        model: On a GPU; on other devices the same operations run without a graph.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._step: _Step | None = None
        self._seen: Tensor | None = None
        self._count = 0

    def logits(self, ids_R1: Tensor, cache: KVCache) -> Tensor | None:
        """Logits (R, 1, V) after one token per row, whose keys and values are added to the cache; None = not yet."""
        if self._step is None or not self._step.cache.serves(cache):
            self._step = self._recorded(ids_R1, cache)
        return None if self._step is None else self._step(ids_R1, cache)

    def _recorded(self, ids_R1: Tensor, cache: KVCache) -> _Step | None:
        buffers = cache.buffers()
        if not buffers or cache.length >= buffers[0][0].shape[2]:
            return None
        first = buffers[0][0]
        self._count = self._count + 1 if first is self._seen else 0
        self._seen = first
        if self._count < _STEADY or not can_be_static(self._model.config, first.shape[2]):
            return None
        return _Step(self._model, ids_R1, cache)


class _Step:
    """One step with the buffers of one cache."""

    def __init__(self, model: Transformer, ids_R1: Tensor, cache: KVCache) -> None:
        self.cache = StaticCache(cache)
        self._model = model
        self._ids_R1 = ids_R1.clone()
        self._graph: torch.cuda.CUDAGraph | None = None
        if ids_R1.device.type == "cuda":
            self._graph, self._logits_R1V = self._record()

    def __call__(self, ids_R1: Tensor, cache: KVCache) -> Tensor:
        self._ids_R1.copy_(ids_R1)
        self.cache.follow(cache)
        if self._graph is None:
            logits_R1V = self._run()
        else:
            self._graph.replay()
            logits_R1V = self._logits_R1V.clone()
        cache.advance()
        return logits_R1V

    def _run(self) -> Tensor:
        cache = cast("KVCache", self.cache)  # a decoder only asks for positions and appends
        return self._model.logits(self._model.decode(self._ids_R1, cache=cache)).float()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Steps before the recording build tables and load kernels; each writes the same keys at the same place."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits_R1V = self._run()
        return graph, logits_R1V
