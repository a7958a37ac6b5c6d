"""Attention masks against the rules, key by key."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import tiny
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.masks import (
    Mask,
    decoder_masks,
    encoder_mask,
    full_context_mask,
    memory_mask,
    minus_inf,
    padding_mask,
)
from onmt_llm.nn.positions import Positions, packed

CPU = torch.device("cpu")
DOC_BT = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]])


def decoder_mask(config: ModelConfig, positions: Positions, **rows: torch.Tensor) -> Mask:
    """The mask of a decoder whose layers are alike."""
    (mask,) = decoder_masks(config, positions, CPU, **rows).values()
    return mask


def allowed(mask: Mask, queries: int, keys: int, rows: int = 1) -> torch.Tensor:
    """(B, T, S) True where a query may attend to a key."""
    bias = mask.as_float(queries, keys)
    full = torch.zeros(rows, 1, queries, keys) if bias is None else bias
    return (full > float("-inf"))[:, 0].expand(rows, queries, keys)


@pytest.mark.parametrize("window", [None, 2, 9])
@pytest.mark.parametrize("position", ["rotary", "shaw", "t5"])
@pytest.mark.parametrize("documents", [False, True])
def test_a_decoder_sees_what_came_before_in_its_window_and_document(
    documents: bool, position: str, window: int | None
) -> None:
    config = tiny.config(position=position, relative_positions=3, relative_buckets=4, sliding_window=window)
    doc_BT = DOC_BT if documents else None
    positions = packed(DOC_BT) if documents else Positions(0, 6)
    found = allowed(decoder_mask(config, positions, doc_BT=doc_BT), 6, 6, rows=2)
    for row, query, key in product(range(2), range(6), range(6)):
        expected = key <= query and (window is None or key > query - window)
        if documents:
            expected = expected and bool(DOC_BT[row, query] == DOC_BT[row, key])
        if documents and DOC_BT[row, query] == 0:
            continue
        assert bool(found[row, query, key]) is expected


@pytest.mark.parametrize("window", [None, 2])
def test_left_padding_is_hidden_and_no_query_is_without_a_key(window: int | None) -> None:
    left_pad_B = torch.tensor([0, 3])
    config = tiny.config(position="rotary", sliding_window=window)
    found = allowed(decoder_mask(config, Positions(0, 5), left_pad_B=left_pad_B), 5, 5, rows=2)
    assert found.any(-1).all()
    assert not found[1, 3:, :3].any() and found[1, 4, 3] and found[0, 1, 0]


def test_one_new_token_needs_no_mask() -> None:
    assert decoder_mask(tiny.llama(), Positions(7, 1)) == Mask()
    assert decoder_mask(tiny.llama(), Positions(0, 4)) == Mask(causal=True)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_an_encoder_sees_both_directions_of_its_document(position: str) -> None:
    config = tiny.seq2seq(position=position)
    mask_BS = torch.tensor([[True, True, False], [True, True, True]])
    found = allowed(encoder_mask(config, Positions(0, 3), mask_BS, CPU), 3, 3, rows=2)
    assert torch.equal(found, mask_BS[:, None, :].expand(2, 3, 3))
    found = allowed(encoder_mask(config, packed(DOC_BT), None, CPU, doc_BS=DOC_BT), 6, 6, rows=2)
    assert torch.equal(found, DOC_BT[:, :, None] == DOC_BT[:, None, :])


def test_alibi_falls_with_the_distance() -> None:
    bias = encoder_mask(tiny.seq2seq(position="alibi"), Positions(0, 4), None, CPU).bias
    assert bias is not None and torch.equal(bias, bias.transpose(-1, -2))
    assert (bias[0, 0, 0].diff() < 0).all() and bias[0, 0, 0, 0] == 0


def test_a_row_of_padding_alone_attends_to_all() -> None:
    mask_BS = torch.tensor([[False, False], [True, False]])
    assert allowed(padding_mask(mask_BS), 1, 2, rows=2)[:, 0].tolist() == [[True, True], [True, False]]
    assert padding_mask(None) == Mask()


def test_targets_see_the_source_of_their_own_document() -> None:
    src_doc_BS = torch.tensor([[1, 2, 2], [1, 2, 3]])
    found = allowed(memory_mask(None, DOC_BT, src_doc_BS), 6, 3, rows=2)
    assert found[0, 0].tolist() == [True, False, False] and found[0, 3].tolist() == [False, True, True]
    assert found[0, 5].all()
    real = torch.tensor([[True, False]])
    assert allowed(memory_mask(real, None, None), 1, 2)[0, 0].tolist() == [True, False]


def test_the_full_context_includes_later_tokens() -> None:
    assert full_context_mask(None, DOC_BT) is None
    real_BT = DOC_BT > 0
    mask = full_context_mask(real_BT, DOC_BT)
    assert mask is not None
    found = allowed(mask, 6, 6, rows=2)
    assert found[0, 0].tolist() == [True, True, True, False, False, False]
    assert found.any(-1).all()


def test_a_bias_is_added_to_a_mask() -> None:
    bias = torch.arange(4.0).view(1, 1, 2, 2)
    hidden = torch.tensor([[False, True], [False, False]])[None, None]
    assert torch.equal(Mask(~hidden).plus(bias).bias, bias.masked_fill(hidden, float("-inf")))
    assert torch.equal(Mask(minus_inf(hidden, torch.float32)).plus(bias).bias, bias + minus_inf(hidden, torch.float32))
    assert Mask().plus(bias).bias is bias
    with pytest.raises(AssertionError):
        Mask(causal=True).plus(bias)
