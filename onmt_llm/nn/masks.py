"""Attention masks: causal, padding, documents of packed rows, sliding windows, ALiBi."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from onmt_llm.config.model import LayerType, ModelConfig
from onmt_llm.nn.positions import Positions, alibi_bias, alibi_bias_falcon, alibi_slopes


@dataclass(frozen=True)
class Mask:
    """The keys that each query may attend to.

    Attributes:
        bias: Broadcasts to (B, N, T, S). Boolean: True = attend. Float: added to the scaled scores. None: all keys.
        causal: Only keys up to the query itself; a flag for the kernel instead of a tensor in `bias`.
        first_BT: With `causal`: the first key that each query sees (documents of a packed row, sliding windows).
        sink: With `first_BT`: all queries see key 0 too.
        kernel_cache: Results that a kernel derives from this mask once for all layers.
    """

    bias: Tensor | None = None
    causal: bool = False
    first_BT: Tensor | None = None
    sink: bool = False
    kernel_cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def materialized(self) -> Tensor | None:
        """The whole mask as a bias; None if it is only causal."""
        return self.materialize()

    def materialize(self) -> Tensor | None:
        """`materialized`, computed again: compiled code cannot use a cached tensor."""
        if self.first_BT is None:
            return self.bias
        key_S = torch.arange(self.first_BT.shape[1], device=self.first_BT.device)
        seen_BTS = (key_S <= key_S[:, None]) & (key_S >= self.first_BT[..., None])
        return (seen_BTS | (key_S == 0) if self.sink else seen_BTS)[:, None]

    @property
    def is_trained(self) -> bool:
        """Whether the bias needs a gradient (T5's relative bias)."""
        return self.bias is not None and self.bias.requires_grad

    def plus(self, bias: Tensor) -> Mask:
        """The same mask with `bias` added to the scaled scores; it must not be `causal`."""
        assert not self.causal
        if self.bias is None:
            return Mask(bias)
        masked = self.bias.dtype == torch.bool
        return Mask(bias.masked_fill(~self.bias, float("-inf")) if masked else self.bias + bias)

    def as_float(self, queries: int, keys: int) -> Tensor | None:
        """The mask as numbers to add to the scores; None = no mask.

        Adding a small tensor is faster than expanding a boolean one over the scores.
        """
        bias = self.materialized
        if bias is None and self.causal:
            return minus_inf(torch.ones(queries, keys, dtype=torch.bool).triu(1), torch.float32)[None, None]
        if bias is None or bias.dtype != torch.bool:
            return bias
        return minus_inf(~bias, torch.float32)


def minus_inf(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where `hidden`, else 0."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


def padding_mask(mask_BS: Tensor | None) -> Mask:
    """Attend to real tokens only (True in mask_BS). A row without any attends to all keys, which avoids NaN."""
    if mask_BS is None:
        return Mask()
    mask_BS = mask_BS | ~mask_BS.any(dim=1, keepdim=True)
    return Mask(mask_BS[:, None, None, :])


def same_document(doc_BT: Tensor, key_doc_BS: Tensor) -> Tensor:
    """(B, T, S): True if query and key belong to one document. Padding (0) sees padding, which avoids NaN."""
    return doc_BT[:, :, None] == key_doc_BS[:, None, :]


def full_context_mask(mask_BT: Tensor | None, doc_BT: Tensor | None) -> Mask | None:
    """Attend to all real tokens (of the document), later ones included; None without `mask_BT`."""
    if mask_BT is None or doc_BT is None:
        return None if mask_BT is None else padding_mask(mask_BT)
    own_BTT = same_document(doc_BT, doc_BT)
    seen_BTT = own_BTT & mask_BT[:, None, :]
    return Mask((seen_BTT | (own_BTT & ~seen_BTT.any(dim=-1, keepdim=True)))[:, None])


def memory_mask(mask_BS: Tensor | None, doc_BT: Tensor | None, src_doc_BS: Tensor | None) -> Mask:
    """Mask of cross attention: real source tokens, and in packed rows those of the target's own document."""
    if doc_BT is None or src_doc_BS is None:
        return padding_mask(mask_BS)
    # A row's sources may have no padding that its padded targets could see: these see all keys.
    allowed_BTS = same_document(doc_BT, src_doc_BS) | (doc_BT == 0)[:, :, None]
    return Mask(allowed_BTS[:, None])


def encoder_mask(
    config: ModelConfig,
    positions: Positions,
    mask_BS: Tensor | None,
    device: torch.device,
    *,
    doc_BS: Tensor | None = None,
) -> Mask:
    """Mask of an encoder: both directions, real tokens only, within the document; with the model's ALiBi."""
    mask = padding_mask(mask_BS) if doc_BS is None else Mask(same_document(doc_BS, doc_BS)[:, None])
    if config.position != "alibi":
        return mask
    index_S = torch.arange(positions.length, device=device)
    bias = alibi_bias(index_S, index_S, alibi_slopes(config.heads, device))
    bias = -bias.abs()[None]
    return Mask(bias if mask.bias is None else bias.masked_fill(~mask.bias, float("-inf")))


def decoder_masks(
    config: ModelConfig,
    positions: Positions,
    device: torch.device,
    *,
    left_pad_B: Tensor | None = None,
    doc_BT: Tensor | None = None,
) -> dict[LayerType, Mask]:
    """Masks of a decoder, for each type of its layers: causal, within the sliding window and the document, without left
    padding; with its ALiBi.

    Right padding needs no mask: no real token follows it. A purely causal mask needs no tensor, unless biases will be
    added to it (Shaw, T5).
    """
    windows = {kind: config.window(kind) for kind in config.decoder_types}
    return {
        kind: _decoder_mask(config, window, positions, device, left_pad_B=left_pad_B, doc_BT=doc_BT)
        for kind, window in windows.items()
    }


def _decoder_mask(
    config: ModelConfig,
    window: int | None,
    positions: Positions,
    device: torch.device,
    *,
    left_pad_B: Tensor | None,
    doc_BT: Tensor | None,
) -> Mask:
    alibi = config.position == "alibi"
    beyond_window = window is not None and positions.end > window
    if left_pad_B is None and not alibi and positions.place_T is None:
        if positions.length == 1 and doc_BT is None and not beyond_window:
            return Mask()
        if positions.start == 0 and config.position not in ("shaw", "t5"):
            first_BT = _first_keys(positions, doc_BT, window, device) if doc_BT is not None or beyond_window else None
            return Mask(causal=True, first_BT=first_BT)
    query_T = positions.places(device)
    key_S = torch.arange(positions.end, device=device)
    allowed = key_S <= query_T[:, None]
    if window is not None:
        allowed = allowed & (key_S > query_T[:, None] - window)
    if left_pad_B is not None:
        # Padding sees itself: a row of the softmax without any key would be NaN.
        real_BS = key_S >= left_pad_B[:, None]
        allowed = allowed & (real_BS[:, None, :] | (key_S == query_T[:, None]))
    if doc_BT is not None:
        allowed = allowed & same_document(doc_BT, doc_BT)
    allowed = allowed[:, None] if allowed.dim() == 3 else allowed[None, None]
    if not alibi:
        return Mask(allowed)
    slopes_N = alibi_slopes(config.heads, device)
    if config.alibi_scaled:
        key_positions_BS = _key_positions(positions, key_S, left_pad_B)
        bias = alibi_bias_falcon(key_positions_BS, slice(positions.start, None), slopes_N, config.size_per_head)
    else:
        bias = alibi_bias(query_T, key_S, slopes_N)[None]
    return Mask(bias.masked_fill(~allowed, float("-inf")))


def _first_keys(positions: Positions, doc_BT: Tensor | None, window: int | None, device: torch.device) -> Tensor:
    """(B or 1, T): the first key that each query sees: in its document and within the window."""
    index_T = torch.arange(positions.length, device=device)
    first_BT = torch.zeros_like(index_T)[None]
    if doc_BT is not None:
        assert positions.index_BT is not None
        first_BT = index_T - positions.index_BT
    return first_BT if window is None else first_BT.clamp(min=index_T - window + 1)


def _key_positions(positions: Positions, key_S: Tensor, left_pad_B: Tensor | None) -> Tensor:
    if left_pad_B is not None:
        return (key_S - left_pad_B[:, None]).clamp(min=0)
    return key_S[None] if positions.index_BT is None else positions.index_BT
