"""Estimate activation memory: what autograd saves in the blocks between forward and backward.

It is counted on a small copy of the model, with all layers, adapters and number formats of the run, but narrow heads
and a proportionally narrow residual stream. The saved tensors are counted storage by storage, so the count includes
whatever the layers save. Their size has the form a + b H in the width H of a head, and w + c T + d T^2 in the length T
of a row, where w are weights in another type. Two widths and three lengths determine all coefficients.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onmt_llm.checkpoint.adapters import base_paths
from onmt_llm.config.latent import LatentConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer, set_dropout
from onmt_llm.nn.wrap import match
from onmt_llm.training.optim.precision import Precision, trainable_to_float32
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.model import add_trainable_parts

_HEAD_SIZES = (8, 16)
_LENGTHS = (48, 96, 144)
_TOKENS = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BatchShape:
    """Shape of a micro-batch.

    Attributes:
        examples: Number of examples.
        rows: Rows of its tensors.
        tgt_length: Positions of each row in the decoder, padding included.
        src_length: Positions of each row in the encoder.
        packed: Rows hold several documents that do not attend to each other.
    """

    examples: int
    rows: int
    tgt_length: int
    src_length: int = 0
    packed: bool = False

    @property
    def tgt_positions(self) -> int:
        """Positions of the decoder in all rows."""
        return self.rows * self.tgt_length

    @property
    def positions(self) -> int:
        """Positions of encoder and decoder in all rows."""
        return self.rows * (self.src_length + self.tgt_length)


@dataclass(frozen=True)
class ActivationEstimate:
    """What autograd saves between forward and backward in a run.

    Attributes:
        model: Architecture of the model.
        config: What is trained, dropout, and activation checkpointing.
        layers: Adapters, twins and quantised layers.
        precision: Number formats.
        batch: The micro-batch.
    """

    model: ModelConfig
    config: TrainConfig
    layers: LayerPlan
    precision: Precision
    batch: BatchShape

    def peak_bytes(self) -> int:
        """Bytes of activations at the peak: what is saved, and the largest part that is recomputed."""
        parts = frozenset(self.config.performance.use_ckpting)
        again = [parts - {"block"}] if "block" in parts else [parts - {part} for part in parts & {"mha", "ffn"}]
        saved, blocks = self.with_recomputed(parts), self.model.encoder_layers + self.model.decoder_layers
        return saved + max((self.with_recomputed(others) - saved for others in again), default=0) // blocks

    def with_recomputed(self, parts: Collection[str]) -> int:
        """Bytes that are saved if `parts` are recomputed."""
        first, second, third = (self._at_length(length, parts) for length in _LENGTHS)
        step, length = _LENGTHS[0], self.batch.tgt_length
        square = (third - 2 * second + first) / (2 * step**2)
        linear = (second - first) / step - 3 * step * square
        return int(self.batch.rows * (linear * length + square * length**2))

    def _at_length(self, length: int, parts: Collection[str]) -> float:
        narrow, wide = _HEAD_SIZES
        counts = [self._count(size, length, parts) for size in _HEAD_SIZES]
        return counts[0] + (counts[1] - counts[0]) / (wide - narrow) * (self.model.size_per_head - narrow)

    def _count(self, head_size: int, length: int, parts: Collection[str]) -> int:
        """Bytes that a copy with heads of `head_size` saves for one row; equal blocks are counted once."""
        depth = self.model.decoder_layers
        if depth <= 2 or not self._has_equal_blocks:
            return self._count_copy(self.model, head_size, length, parts)
        one, two = (
            self._count_copy(self.model.model_copy(update={"decoder_layers": few}), head_size, length, parts)
            for few in (1, 2)
        )
        return one + (depth - 1) * (two - one)

    @property
    def _has_equal_blocks(self) -> bool:
        """Whether the model is a single stack of blocks that do not differ."""
        model, layers = self.model, self.layers
        named = [*layers.quantised, *(() if layers.lora is None else layers.lora.layers)]
        return not (
            model.encoder_layers
            or len(set(model.layer_types)) > 1
            or len(set(model.rope_layers)) > 1
            or model.moe.dense_layers
            or layers.expansion is not None
            or any(".layers." in name for name in named)
        )

    def _count_copy(self, shape: ModelConfig, head_size: int, length: int, parts: Collection[str]) -> int:
        model = self._copy(shape, head_size)
        set_recomputed(model, parts)
        batch, storages = self.batch, _SavedStorages(model)
        ids_BT, doc_BT = small_row(length, batch.packed)
        memory_BSD = src_doc_BS = None
        with storages.recorded(), self.precision.compute(_CPU):
            if model.encoder is not None:
                ids_BS, src_doc_BS = small_row(max(2, length * batch.src_length // batch.tgt_length), batch.packed)
                memory_BSD = model.encode(ids_BS, doc_BS=src_doc_BS)
            model.decode(ids_BT, memory_BSD, doc_BT=doc_BT, src_doc_BS=src_doc_BS)
        return storages.total

    def small_copy(self, head_size: int) -> Transformer:
        """A copy of the model with heads of this width, and without recomputation, ready for training."""
        shape = self.model.model_copy(update={"decoder_layers": 1}) if self._has_equal_blocks else self.model
        return self._copy(shape, head_size)

    def _copy(self, shape: ModelConfig, head_size: int) -> Transformer:
        layers, dropout = self.layers, self.config.regularization
        with torch.random.fork_rng(devices=[]):
            model = Transformer(narrowed(shape, head_size)).to(self.precision.weights)
            quantised = match(model, layers.quantised)
            if layers.twins is not None:
                add_trainable_parts(model, self.config, layers)
                quantised = base_paths(quantised, layers.twins.blocks)
            if quantised:
                quantize(model, quantised, layers.quant_type)
            if layers.twins is None:
                add_trainable_parts(model, self.config, layers)
        if not self.config.performance.pure_bf16:
            trainable_to_float32(model)
        set_dropout(model, max(dropout.dropout), max(dropout.attention_dropout))
        return model.train()


class _SavedStorages:
    """Counts the tensors that autograd saves, except the weights of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self._saved: dict[int, Tensor] = {}

    def recorded(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context for the forward pass."""
        return torch.autograd.graph.saved_tensors_hooks(self._record, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes of the recorded storages."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._saved.values())

    def _record(self, tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self._weights:
            # Kept alive, so that no other storage gets the same address.
            self._saved[pointer] = tensor
        return tensor


def narrowed(config: ModelConfig, head_size: int) -> ModelConfig:
    """The same architecture with heads of `head_size`, all other widths in proportion, and a tiny vocabulary."""
    share = head_size / config.size_per_head

    def narrow(width: int) -> int:
        return width and max(1, round(width * share))

    rotary = config.rope.rotary_dim and max(2, round(config.rope.rotary_dim * share / 2) * 2)
    return config.model_copy(
        update={
            "hidden_size": narrow(config.hidden_size),
            "head_dim": head_size,
            "latent": LatentConfig(**{name: value and narrow(value) for name, value in config.latent}),
            "ffn_size": narrow(config.ffn_size),
            "moe": config.moe.model_copy(
                update={"expert_size": narrow(config.expert_size), "shared_size": narrow(config.moe.shared_size)}
            ),
            "rope": RopeConfig(rotary_dim=rotary, local_theta=config.rope.local_theta),
            "vocab_size": _TOKENS,
            "src_vocab_size": None,
            "src_features": [],
            "max_position": max(_LENGTHS),
            "sliding_window": config.sliding_window and min(config.sliding_window, max(_LENGTHS)),
        }
    )


def small_row(length: int, packed: bool) -> tuple[Tensor, Tensor | None]:
    """A row of tokens, and the document of each token (there are two)."""
    ids_BT = torch.zeros(1, length, dtype=torch.long)
    return ids_BT, 1 + 2 * torch.arange(length)[None] // length if packed else None
