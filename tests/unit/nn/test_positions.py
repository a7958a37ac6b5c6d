"""Position tables against formulas worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from onmt_llm.config.rope import RopeConfig
from onmt_llm.nn.positions import (
    alibi_slopes,
    build_rotary_table,
    build_sinusoidal_table,
    left_padded,
    packed,
    rotary_frequencies,
    rotate,
)

CPU = torch.device("cpu")


def test_packed_positions_restart() -> None:
    doc = torch.tensor([[1, 1, 2, 2, 2, 0], [7, 8, 9, 9, 0, 0]])
    assert packed(doc).index_BT.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 0, 0]]


def test_left_padded_positions_count_from_the_first_real_token() -> None:
    assert left_padded(2, 3, torch.tensor([0, 3])).index_BT.tolist() == [[2, 3, 4], [0, 0, 1]]


def test_rotation_is_that_of_the_complex_plane() -> None:
    rope, x = RopeConfig(theta=50.0), torch.randn(1, 7, 2, 8)
    table = build_rotary_table(rope, 6, 7, CPU)
    first, second, rest = x[..., :3], x[..., 3:6], x[..., 6:]
    angles = torch.outer(torch.arange(7.0), 50.0 ** (-torch.arange(3) / 3))[:, None]
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag, rest), dim=-1)
    torch.testing.assert_close(rotate(x, table), expected, atol=1e-6, rtol=0)


def test_rope_scaling() -> None:
    plain = rotary_frequencies(RopeConfig(), 64, CPU)
    linear = rotary_frequencies(RopeConfig(scaling="linear", factor=4.0), 64, CPU)
    torch.testing.assert_close(linear, plain / 4)
    llama3 = rotary_frequencies(RopeConfig(scaling="llama3", factor=8.0, original_max_position=1000), 64, CPU)
    wavelengths = 2 * math.pi / plain
    torch.testing.assert_close(llama3[wavelengths < 250], plain[wavelengths < 250])
    torch.testing.assert_close(llama3[wavelengths > 1000], plain[wavelengths > 1000] / 8)
    assert (llama3.diff() < 0).all()


@pytest.mark.parametrize("size", [6, 7])
def test_sinusoidal_table(size: int) -> None:
    table = build_sinusoidal_table(size, 9, CPU)
    half = math.ceil(size / 2)
    assert table.shape == (9, size)
    for position in (0, 1, 8):
        for i in range(size):
            angle = position / 10000 ** (2 * (i % half) / size)
            expected = math.sin(angle) if i < half else math.cos(angle)
            assert table[position, i].item() == pytest.approx(expected, abs=1e-6)


def test_alibi_slopes() -> None:
    assert alibi_slopes(8, CPU).tolist() == pytest.approx([2.0**-i for i in range(1, 9)])
    six = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    assert alibi_slopes(6, CPU).tolist() == pytest.approx(six)
