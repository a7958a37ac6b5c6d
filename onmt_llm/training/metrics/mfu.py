"""Model FLOPs utilisation (MFU), the share of the peak matmul speed that training reaches, and memory use.

The operations of an update are those of the model: for each weight and position two forward, two for the gradient of
its input, and two for the gradient of the weight if it is trained; in attention four for each pair of positions and
column of the heads, and twice that backward. Below the first trained block there is no backward pass. Padding counts,
since it is computed; of a mixture of experts only those that compute a position. Recomputation (activation
checkpointing) and other models (a reference, a prior) do not count.

Shapes: B rows, T and S positions, K documents of a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.block_expansion import TwinBlock
from onmt_llm.nn.layers.stack import Stack
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.cross_entropy import IGNORE
from onmt_llm.training.losses.output_layer import output_parameters
from onmt_llm.training.process.host_memory import peak_memory

MIB = 1 << 20
# Width of the matrices that measure the peak: large enough to reach it, small enough to be fast.
_WIDTH = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of the forward and backward pass.

    Attributes:
        source: Per position of the encoder, including the keys and values that the decoder's layers compute from it.
        target: Per position of the decoder.
        label: Per trained position, in the output layer.
        encoder_pair: Per pair of positions that attend to each other in the encoder.
        decoder_pairs: The same in the decoder, from target to source and within the target, in the layers of each
            sliding window; None = in those without.
    """

    source: float
    target: float
    label: float
    encoder_pair: float
    decoder_pairs: Mapping[int | None, float]

    @classmethod
    def of(cls, model: Transformer) -> ModelFlops:
        """The operations of a model with its frozen weights, adapters and twins."""
        config = model.config
        queries = config.heads * (config.size_per_head + config.value_size) / 2
        keys = config.num_kv_heads * config.size_per_head
        outer, memory = 2 * config.hidden_size * queries, 2 * config.hidden_size * keys
        used = config.moe.experts_per_token
        ffn = (3 if config.ffn_gated else 2) * config.mean_ffn_size(used)
        routed = config.moe.experts * len(config.moe_layers) / max(config.decoder_layers, 1)
        attention = _latent_weights(config) if config.latent.kv_rank else outer + memory
        block = attention + config.hidden_size * (ffn + routed)
        crossing = config.encoder_layers > 0 and config.decoder_layers > 0
        # Forward, and the gradients of the inputs; the gradients of the weights are added below.
        uses = block_uses(model)
        in_encoder, in_decoder = (sum(2.0 + 2.0 * use.backward for use in stack) for stack in uses)
        source = in_encoder * block + (in_decoder * memory if crossing else 0.0)
        target = in_decoder * (block + (outer if crossing else 0))
        for name, parameter in model.named_parameters():
            if parameter.ndim != 2 or not parameter.requires_grad or ".layers." not in name or "relative" in name:
                continue
            operations = (6.0 if ".lora_" in name else 2.0) * parameter.numel()
            operations *= used / config.moe.experts if ".experts." in name else 1.0
            if name.startswith("encoder.") or "cross_attn.k_proj" in name or "cross_attn.v_proj" in name:
                source += operations
            else:
                target += operations
        label = (6.0 if output_parameters(model) else 4.0) * config.hidden_size * config.vocab_size
        return cls(
            source,
            target,
            label,
            queries * sum(use.pair for use in uses[0]),
            {
                window: queries * sum(use.pair for use in uses[1] if use.window == window)
                for window in {use.window for use in uses[1]}
            },
        )

    def __call__(self, batch: Batch) -> float:
        """Operations of an update with this batch."""
        lengths_BK = _lengths(batch.tgt_BT, batch.doc_BT)
        total = self.target * batch.tgt_BT.numel() + self.label * float((batch.labels_BT != IGNORE).sum())
        total += sum(
            pair * float(_causal_pairs(lengths_BK, window).sum()) for window, pair in self.decoder_pairs.items()
        )
        if batch.src_BS is not None:
            sources_BK = _lengths(batch.src_BS, batch.src_doc_BS)
            documents = min(lengths_BK.shape[1], sources_BK.shape[1])
            crossing = (lengths_BK[:, :documents] * sources_BK[:, :documents]).sum()
            total += self.source * batch.src_BS.numel() + self.encoder_pair * float((sources_BK**2).sum())
            total += sum(self.decoder_pairs.values()) * float(crossing)
        return total


def _latent_weights(config: ModelConfig) -> int:
    """Number of weights in the projections of a latent attention."""
    latent, heads = config.latent, config.heads
    queries, values = heads * config.size_per_head, heads * config.value_size
    rest = queries - heads * config.rotary_size
    to_queries = latent.q_rank * (config.hidden_size + queries) or config.hidden_size * queries
    to_keys = config.hidden_size * (config.rotary_size + latent.kv_rank) + latent.kv_rank * (rest + values)
    return to_queries + to_keys + values * config.hidden_size


@dataclass(frozen=True)
class BlockUse:
    """How an update uses a block.

    Attributes:
        backward: The backward pass goes through it, because it or something below it is trained.
        window: Sliding window of its self-attention.
    """

    backward: bool
    window: int | None

    @property
    def pair(self) -> float:
        """Operations for each pair of positions and column of the heads."""
        return 4.0 + 8.0 * self.backward


def block_uses(model: Transformer) -> tuple[list[BlockUse], list[BlockUse]]:
    """The use of each block of encoder and decoder; a pair of twins counts as two blocks."""
    encoder, decoder = model.encoder, model.decoder
    shared = encoder is not None and decoder is not None and encoder.embed_tokens is None
    memory = _stack_uses(encoder, below=shared and _is_trained(decoder.embed_tokens))  # type: ignore[union-attr]
    return memory, _stack_uses(decoder, below=any(use.backward for use in memory))


def _stack_uses(stack: Stack | None, *, below: bool) -> list[BlockUse]:
    if stack is None:
        return []
    uses: list[BlockUse] = []
    below = below or any(_is_trained(part) for name, part in stack.named_children() if name not in ("layers", "norm"))
    for layer in stack.layers:
        halves: list[Any] = [layer.base, layer.twin] if isinstance(layer, TwinBlock) else [layer]
        for half in halves:
            uses.append(BlockUse(below or _is_trained(half), stack.config.window(half.kind)))
        below = below or any(map(_is_trained, halves))
    return uses


def _is_trained(module: nn.Module | None) -> bool:
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())


def _lengths(ids_BT: Tensor, doc_BT: Tensor | None) -> Tensor:
    """Positions of each document of each row (float64); a row is one document if documents are not numbered."""
    rows, length = ids_BT.shape
    if doc_BT is None:
        return torch.full((rows, 1), length, dtype=torch.float64)
    counts_BK = torch.zeros(rows, int(doc_BT.max()) + 1, dtype=torch.float64)
    return counts_BK.scatter_add_(1, doc_BT, torch.ones_like(doc_BT, dtype=torch.float64))[:, 1:]


def _causal_pairs(lengths_BK: Tensor, window: int | None) -> Tensor:
    """Pairs of a position and itself or an earlier one, up to `window` of them."""
    pairs_BK = lengths_BK * (lengths_BK + 1) / 2
    if window is None:
        return pairs_BK
    beyond_BK = (lengths_BK - window).clamp(min=0)
    return pairs_BK - beyond_BK * (beyond_BK + 1) / 2


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations per second of the fastest of several products of square matrices; draws no random numbers."""
    width = _WIDTH.get(device.type, 1024)
    matrix = torch.full((width, width), 0.5, device=device, dtype=dtype)
    fastest, until = float("inf"), time.perf_counter() + seconds
    for turn in range(1000):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ended = time.perf_counter()
        if turn:  # the first one warms up
            fastest = min(fastest, ended - began)
            if ended > until:
                break
    return 2.0 * width**3 / fastest


class HardwareMonitor:
    """Adds up the operations of the batches, and reports MFU and memory.

    Args:
        device: Device of the model.
        flops: Operations of the model; None = only memory is reported.
        peak: Peak operations per second.
    """

    def __init__(self, device: torch.device, flops: ModelFlops | None = None, peak: float = 1.0) -> None:
        self._device = device
        self._flops = flops
        self._peak = peak
        self._done = 0.0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, while their operations are added up."""
        for batch in batches:
            if self._flops is not None:
                self._done += self._flops(batch)
            yield batch

    def metrics(self, seconds: float) -> dict[str, float]:
        """`mfu` (share of the peak) in the last `seconds`, and peak memory so far: `peak_rss_mib`, ..."""
        metrics = {f"{name}_mib": size / MIB for name, size in peak_memory(self._device.type).items()}
        if self._flops is not None:
            metrics["mfu"] = self._done / seconds / self._peak
            self._done = 0.0
        return metrics
