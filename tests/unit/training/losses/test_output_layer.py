"""The output layer as the losses use it: its trainable parameters, and how many positions are computed together."""

from __future__ import annotations

import pytest
import torch

import tiny
from onmt_llm.training.losses.output_layer import OutputLayer, default_chunk_tokens, output_parameters


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_that_the_logits_depend_on(tied: bool) -> None:
    model = tiny.build(tiny.llama(tie_embeddings=tied))
    output = OutputLayer.of(model)
    model.zero_grad()
    output.logits(torch.randn(3, 32)).sum().backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in output.parameters}
    assert output.vocab_size == 24


def test_a_frozen_output_layer_has_no_trainable_parameters() -> None:
    model = tiny.build(tiny.llama()).requires_grad_(False)
    assert output_parameters(model) == [] and OutputLayer.of(model).chunk_tokens("cpu") > 0


@pytest.mark.parametrize("vocab", [1, 100, 32_000, 256_000, 1 << 26])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_are_bounded_in_memory(device: str, trained: bool, vocab: int) -> None:
    positions = default_chunk_tokens(device, vocab, trained=trained)
    assert positions >= 1 and (positions == 1 or positions * vocab <= 1 << 25)


def test_on_a_cpu_a_chunk_has_some_hundred_positions() -> None:
    assert default_chunk_tokens("cpu", 32_000, trained=False) == 512
    assert default_chunk_tokens("cpu", 128_000, trained=False) < default_chunk_tokens("cpu", 128_000, trained=True)
