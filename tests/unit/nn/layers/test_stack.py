"""Noise on embeddings."""

from __future__ import annotations

import math

import torch

from onmt_llm.nn.layers.stack import add_noise
from onmt_llm.nn.positions import Positions, packed


def test_noise_is_bounded_by_the_length() -> None:
    x = torch.zeros(2, 25, 4)
    noise = add_noise(x, 5.0, Positions(0, 25))
    bound = 5.0 / math.sqrt(25 * 4)
    assert 0.9 * bound < noise.abs().max() <= bound and abs(float(noise.mean())) < bound / 4
    assert add_noise(x, 0.0, Positions(0, 25)) is x


def test_in_packed_rows_the_length_is_that_of_the_document() -> None:
    doc_BT = torch.tensor([[1] * 4 + [2] * 100])
    noise = add_noise(torch.zeros(1, 104, 64), 1.0, packed(doc_BT))
    short, long = noise[0, :4].abs().max(), noise[0, 4:].abs().max()
    assert 0.9 / math.sqrt(4 * 64) < short <= 1 / math.sqrt(4 * 64)
    assert 0.9 / math.sqrt(100 * 64) < long <= 1 / math.sqrt(100 * 64) + 1e-6
