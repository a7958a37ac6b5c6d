"""A KV cache of fixed size, whose next place is a tensor: a step with it always runs the same operations on the same
memory, so that CUDA can record it as a graph and replay it."""

from __future__ import annotations

import torch
from torch import Tensor

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.positions import Positions


def can_be_static(config: ModelConfig, room: int) -> bool:
    """Whether a step of a model depends on the device's tensors alone, with a cache that has room for so many tokens.

    It does not if the number of tokens selects operations (frequencies that change with the length, the rows of each
    expert, a check of learned positions).
    """
    if not config.is_decoder_only or config.moe_layers:
        return False
    if config.position == "alibi":
        return not config.alibi_scaled
    if config.position == "learned":
        return room <= config.max_position
    return config.rope.scaling not in ("dynamic", "longrope")


class StaticCache:
    """The buffers of a `KVCache` for one token at a time: its keys and values are written at `place_T`, and it attends
    to all of the buffers, with a mask.

    Args:
        cache: Has read at least one token. Its length does not change: call `KVCache.advance` after each step.

    Attributes:
        place_T: (1,) place of the token; `follow` sets it.
        left_pad_B: As in `KVCache`.
    """

    def __init__(self, cache: KVCache) -> None:
        self._buffers = cache.buffers()
        self.left_pad_B = cache.left_pad_B
        keys = self._buffers[0][0]
        self._room = keys.shape[2]
        for pair in self._buffers:
            for buffer in pair:
                buffer[:, :, cache.length :].zero_()  # unused memory may hold NaN, which no mask hides
        self.place_T = torch.tensor([cache.length], device=keys.device)

    def serves(self, cache: KVCache) -> bool:
        """Whether these are still the buffers and the padding of a cache, with room for a token."""
        found = cache.buffers()
        same = len(found) == len(self._buffers) and all(map(lambda a, b: a is b, found, self._buffers))
        return same and cache.left_pad_B is self.left_pad_B and cache.length < self._room

    def follow(self, cache: KVCache) -> None:
        """Set the place of the next token."""
        self.place_T.fill_(cache.length)

    def positions(self, length: int) -> Positions:
        """As `KVCache.positions`, for one token."""
        assert length == 1, "a static cache takes one token at a time"
        index_BT = self.place_T[None]
        if self.left_pad_B is not None:
            index_BT = (self.place_T - self.left_pad_B[:, None]).clamp(min=0)
        return Positions(self._room - 1, 1, index_BT, self.place_T)

    def append(self, layer: int, k_BK1H: Tensor, v_BK1H: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of a token; returns all of the layer's buffers, (B, K, S, H)."""
        k_BKSH, v_BKSH = self._buffers[layer]
        k_BKSH.index_copy_(2, self.place_T, k_BK1H)
        v_BKSH.index_copy_(2, self.place_T, v_BK1H)
        return k_BKSH, v_BKSH
