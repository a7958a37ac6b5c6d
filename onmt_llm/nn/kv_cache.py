"""KV cache: keys and values of the tokens that were already processed."""

from __future__ import annotations

import torch
from torch import Tensor

from onmt_llm.nn.positions import Positions, left_padded

GRANULE = 64
"""Buffers have room for a multiple of so many tokens."""


class KVCache:
    """Keys and values per layer, for decoding without gradients. Positions and masks follow from its length.

    The buffers grow by a quarter at a time, so an append rarely copies and little memory is unused.

    Args:
        num_layers: Self-attentions of the decoder (`Transformer.cache_layers`).
        left_pad_B: Padding tokens before the first real token of each row; None = none anywhere.
        capacity: Positions to reserve at the first append, when the final length is known.
    """

    def __init__(self, num_layers: int, *, left_pad_B: Tensor | None = None, capacity: int = 0) -> None:
        self.left_pad_B = left_pad_B if left_pad_B is not None and bool(left_pad_B.any()) else None
        self._capacity = capacity
        self._lengths = [0] * num_layers
        self._self: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._spare: tuple[Tensor, Tensor] | None = None
        self._cross: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    @property
    def length(self) -> int:
        """Number of tokens in every layer (left padding included)."""
        return self._lengths[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, unused capacity included."""
        return sum(t.nbytes for pair in (*self._self, *self._cross, self._spare) if pair is not None for t in pair)

    @property
    def token_nbytes(self) -> int:
        """Bytes of the keys and values of one token of one row."""
        return sum(t[0, :, :1].nbytes for pair in self._self if pair is not None for t in pair)

    def positions(self, length: int) -> Positions:
        """Positions of so many tokens after those in the cache."""
        if self.left_pad_B is None:
            return Positions(self.length, length)
        return left_padded(self.length, length, self.left_pad_B)

    def append(self, layer: int, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of T new tokens, (B, K, T, H) each; returns all of the layer's, (B, K, S, H)."""
        start = self._lengths[layer]
        end = start + k_BKTH.shape[2]
        k, v = self._reserve(layer, end, k_BKTH, v_BKTH)
        k[:, :, start:end] = k_BKTH
        v[:, :, start:end] = v_BKTH
        self._lengths[layer] = end
        return k[:, :, :end], v[:, :, :end]

    def buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of all layers with their unused capacity, (B, K, S, H) each."""
        return [pair for pair in self._self if pair is not None]

    def advance(self) -> None:
        """Count one more token, whose keys and values were written into `buffers`."""
        self._lengths = [length + 1 for length in self._lengths]

    def trim(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self._lengths = [min(length, used) for used in self._lengths]

    def copy(self, length: int, *, row: int = 0, capacity: int = 0) -> KVCache:
        """A cache of its own that holds the first `length` tokens of one row (its left padding does not count).

        The memory of an encoder-decoder is not copied.
        """
        start = 0 if self.left_pad_B is None else int(self.left_pad_B[row])
        copied = KVCache(len(self._self), capacity=capacity)
        for layer, pair in enumerate(self._self):
            if pair is not None:
                k_1KSH, v_1KSH = (t[row : row + 1, :, start : start + length] for t in pair)
                copied.append(layer, k_1KSH, v_1KSH)
        return copied

    def cross(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the memory, (B, K, S, H) each, or None before `set_cross`."""
        return self._cross[layer]

    def set_cross(self, layer: int, k_BKSH: Tensor, v_BKSH: Tensor) -> None:
        self._cross[layer] = (k_BKSH.contiguous(), v_BKSH.contiguous())

    def reorder(self, idx_B: Tensor, *, cross: bool = True) -> None:
        """Replace row i by the former row idx_B[i]; idx_B may be shorter or longer than the batch.

        Args:
            idx_B: Rows to keep, in order (int64).
            cross: Reorder the memory too. Beam search, where the beams of a source share one memory, passes False and
                calls `reorder_cross` when sources are finished.
        """
        for layer, pair in enumerate(self._self):
            if pair is not None:
                self._self[layer] = self._select_used(layer, pair, idx_B)
        if cross:
            self.reorder_cross(idx_B)
        if self.left_pad_B is not None:
            self.left_pad_B = self.left_pad_B.index_select(0, idx_B)

    def reorder_cross(self, idx_B: Tensor) -> None:
        """Replace memory i by the former memory idx_B[i]."""
        for layer, pair in enumerate(self._cross):
            if pair is not None:
                self._cross[layer] = (pair[0].index_select(0, idx_B), pair[1].index_select(0, idx_B))

    def join(self, other: KVCache) -> None:
        """Add the rows of another cache of the same model below; the shorter rows get padding on their left, and the
        shorter memories on their right (which the caller masks)."""
        length = max(self.length, other.length)
        self.left_pad_B = torch.cat([self._padding(length), other._padding(length)])
        for layer, pairs in enumerate(zip(self._self, other._self, strict=True)):
            self._self[layer] = _joined(pairs, (self._lengths[layer], other._lengths[layer]), length)
            self._lengths[layer] = length
        for layer, pairs in enumerate(zip(self._cross, other._cross, strict=True)):
            self._cross[layer] = _joined_memories(pairs)
        self._spare = None
        self.drop_padding()

    def drop_padding(self) -> None:
        """Remove the columns that are padding in every row, once they are an eighth of all: this copies the others."""
        columns = 0 if self.left_pad_B is None else int(self.left_pad_B.min())
        if columns * 8 >= max(self.length, 1):
            assert self.left_pad_B is not None
            for layer, pair in enumerate(self._self):
                if pair is not None:
                    used = slice(columns, self._lengths[layer])
                    self._self[layer] = (pair[0][:, :, used].clone(), pair[1][:, :, used].clone())
                self._lengths[layer] -= columns
            self.left_pad_B = self.left_pad_B - columns
            self._spare = None
        if self.left_pad_B is not None and not bool(self.left_pad_B.any()):
            self.left_pad_B = None

    def _padding(self, length: int) -> Tensor:
        """Left padding of each row of a cache that is as long as that."""
        keys = next(pair[0] for pair in self._self if pair is not None)
        pad_B = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
        return (pad_B if self.left_pad_B is None else self.left_pad_B) + length - self.length

    def _select_used(self, layer: int, pair: tuple[Tensor, Tensor], idx_B: Tensor) -> tuple[Tensor, Tensor]:
        """Copy the used part of the rows into the spare buffers; the old buffers become the next layer's spare ones."""
        rows, used = len(idx_B), self._lengths[layer]
        target = self._spare
        if target is None or target[0].shape != (rows, *pair[0].shape[1:]):
            target = (pair[0].new_empty(rows, *pair[0].shape[1:]), pair[1].new_empty(rows, *pair[1].shape[1:]))
        for old, new in zip(pair, target, strict=True):
            torch.index_select(old[:, :, :used], 0, idx_B, out=new[:, :, :used])
        self._spare = pair
        return target

    def _reserve(self, layer: int, end: int, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        pair = self._self[layer]
        room = pair[0].shape[2] if pair is not None else 0
        if pair is not None and end <= room:
            return pair
        wanted = max(end, room + room // 4, self._capacity)
        wanted = -(-wanted // GRANULE) * GRANULE
        grown = []
        for i, new in enumerate((k_BKTH, v_BKTH)):
            buffer = new.new_empty(new.shape[0], new.shape[1], wanted, new.shape[3])
            if pair is not None:
                kept = self._lengths[layer]
                buffer[:, :, :kept] = pair[i][:, :, :kept]
            grown.append(buffer)
        self._self[layer] = (grown[0], grown[1])
        return grown[0], grown[1]


Pair = tuple[Tensor, Tensor] | None
"""Keys and values of a layer."""


def _joined(pairs: tuple[Pair, Pair], lengths: tuple[int, int], length: int) -> Pair:
    """The rows of two caches, (B, K, S, H) each, with their ends aligned; with some room for more tokens."""
    upper, lower = pairs
    if upper is None or lower is None:
        return None
    room = -(-(length + 1) // GRANULE) * GRANULE
    buffers = []
    for above, below in zip(upper, lower, strict=True):
        rows = above.shape[0] + below.shape[0]
        buffer = above.new_zeros(rows, above.shape[1], room, above.shape[3])
        buffer[: above.shape[0], :, length - lengths[0] : length] = above[:, :, : lengths[0]]
        buffer[above.shape[0] :, :, length - lengths[1] : length] = below[:, :, : lengths[1]]
        buffers.append(buffer)
    return buffers[0], buffers[1]


def _joined_memories(pairs: tuple[Pair, Pair]) -> Pair:
    upper, lower = pairs
    if upper is None or lower is None:
        return None
    k, v = (join_padded(above, below, dim=2) for above, below in zip(upper, lower, strict=True))
    return k, v


def join_padded(above: Tensor, below: Tensor, *, dim: int) -> Tensor:
    """The rows of two tensors, of which the shorter in dimension `dim` gets zeros at its end."""
    length = max(above.shape[dim], below.shape[dim])
    shape = list(above.shape)
    shape[0], shape[dim] = above.shape[0] + below.shape[0], length
    joined = above.new_zeros(shape)
    joined[: above.shape[0]].narrow(dim, 0, above.shape[dim]).copy_(above)
    joined[above.shape[0] :].narrow(dim, 0, below.shape[dim]).copy_(below)
    return joined
