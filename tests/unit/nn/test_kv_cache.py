"""KVCache: growth, beams, trimming."""

from __future__ import annotations

import torch

from onmt_llm.nn.kv_cache import KVCache


def kv(length: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, length, 4, generator=torch.Generator().manual_seed(seed))


def test_appends_past_its_capacity() -> None:
    cache, pieces = KVCache(2), [kv(n, seed=n) for n in (60, 3, 1, 200, 1)]
    for piece in pieces:
        before = cache.length
        for layer in range(2):
            assert cache.length == before
            k, v = cache.append(layer, piece, -piece)
    whole = torch.cat(pieces, dim=2)
    assert torch.equal(k, whole) and torch.equal(v, -whole)
    assert cache.length == whole.shape[2]
    used = 2 * 2 * whole.nbytes
    assert used <= cache.nbytes <= 1.5 * used


def test_reserved_capacity_is_allocated_once() -> None:
    cache = KVCache(1, capacity=100)
    cache.append(0, kv(3), kv(3))
    reserved = cache.nbytes
    cache.append(0, kv(97), kv(97))
    assert cache.nbytes == reserved


def test_reorder_moves_rows_memory_and_padding() -> None:
    cache = KVCache(1, left_pad_B=torch.tensor([0, 5]))
    k, memory = kv(4), kv(7, seed=9)
    cache.append(0, k, k)
    cache.set_cross(0, memory, memory)
    cache.reorder(torch.tensor([1, 1, 0]))
    new = kv(1, batch=3, seed=2)
    got, _ = cache.append(0, new, new)
    assert torch.equal(got, torch.cat([k[[1, 1, 0]], new], dim=2))
    assert torch.equal(cache.cross(0)[0], memory[[1, 1, 0]])
    assert cache.left_pad_B.tolist() == [5, 5, 0]
    cache.reorder(torch.tensor([2, 1, 0]), cross=False)
    assert torch.equal(cache.cross(0)[0], memory[[1, 1, 0]])


def test_no_padding_anywhere_is_no_padding() -> None:
    assert KVCache(1, left_pad_B=torch.zeros(2, dtype=torch.long)).left_pad_B is None


def test_a_trimmed_cache_goes_on_from_there() -> None:
    cache, first, other = KVCache(2), kv(9), kv(3, seed=1)
    for layer in range(2):
        cache.append(layer, first, -first)
    cache.trim(5)
    assert cache.length == 5
    for layer in range(2):
        k, v = cache.append(layer, other, -other)
        assert torch.equal(k, torch.cat([first[:, :, :5], other], dim=2)) and torch.equal(v, -k)
    cache.trim(100)
    assert cache.length == 8


def test_a_copy_of_a_row_has_its_own_memory_and_no_padding() -> None:
    cache, first = KVCache(1, left_pad_B=torch.tensor([0, 3])), kv(9)
    cache.append(0, first, -first)
    for row, start in ((0, 0), (1, 3)):
        copied = cache.copy(5, row=row, capacity=80)
        assert copied.left_pad_B is None and copied.length == 5
        new = kv(1, batch=1, seed=3)
        k, v = copied.append(0, new, -new)
        assert torch.equal(k, torch.cat([first[row : row + 1, :, start : start + 5], new], dim=2))
        assert torch.equal(v, -k)
        k.zero_()
    again, _ = cache.append(0, kv(1), kv(1))
    assert torch.equal(again[:, :, :9], first)


def test_joined_rows_keep_their_keys_and_columns_that_all_pad_are_dropped() -> None:
    short, long = KVCache(2, left_pad_B=torch.tensor([0, 1])), KVCache(2)
    k, more, memory = kv(3), kv(70, batch=1, seed=1), kv(5, seed=2)
    for layer in range(2):
        short.append(layer, k, -k)
        long.append(layer, more, -more)
        short.set_cross(layer, memory, memory)
        long.set_cross(layer, memory[:1, :, :2], memory[:1, :, :2])
    short.join(long)
    assert short.length == 70 and short.left_pad_B.tolist() == [67, 68, 0]
    assert torch.equal(short.cross(1)[0][2, :, :2], memory[0, :, :2]) and short.cross(1)[0].shape[2] == 5
    short.reorder(torch.tensor([1, 0]))
    short.drop_padding()
    assert short.length == 3 and short.left_pad_B.tolist() == [1, 0]
    new = kv(1, seed=3)
    got, negative = short.append(0, new, new)
    assert torch.equal(got, torch.cat([k[[1, 0]], new], dim=2)) and torch.equal(negative[:, :, :3], -k[[1, 0]])
    short.reorder(torch.tensor([1]))
    short.drop_padding()
    assert short.left_pad_B is None
