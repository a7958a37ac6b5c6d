"""Tiny models and batches for the tests of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching import Batch
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.transformer import Transformer

VOCAB = 23


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig(
        decoder_layers=2,
        vocab_size=VOCAB,
        hidden_size=32,
        heads=4,
        kv_heads=2,
        ffn_size=48,
        ffn_gated=True,
        activation="silu",
        norm="rmsnorm",
        position="rotary",
    )


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Transformer:
    model = Transformer(tiny_config)
    init_weights(model, glorot=True)
    return model


@pytest.fixture
def make_batch() -> Callable[[Sequence[Sequence[int]], Sequence[int]], Batch]:
    """Rows of token ids -> a right-padded language-model batch; the first `prompts[i]` labels of row i are masked."""

    def make(rows: Sequence[Sequence[int]], prompts: Sequence[int]) -> Batch:
        length = max(map(len, rows)) + 1
        tgt = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), -100)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            tgt[i, 0] = 1
            tgt[i, 1 : len(row) + 1] = torch.tensor(row)
            labels[i, prompt : len(row) + 1] = torch.tensor([*row, 2][prompt:])
        return Batch(
            src_BS=None,
            src_mask_BS=None,
            tgt_BT=tgt,
            labels_BT=labels,
            doc_BT=None,
            num_targets=int((labels != -100).sum()),
            num_examples=len(rows),
        )

    return make
