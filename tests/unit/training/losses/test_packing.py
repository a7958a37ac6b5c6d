"""Packed and padded batches give the same loss and gradients, for every kind of positions."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.batching.collate import collate, collate_rows
from onmt_llm.data.batching.packing import pack_rows
from onmt_llm.data.example import IGNORED, Encoded
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.objective import GuidedAlignment, Objective

POSITIONS: dict[str, dict[str, Any]] = {
    "rotary": {"position": "rotary", "kv_heads": 2},
    "window": {"position": "rotary", "sliding_window": 3},
    "sinusoidal": {"position": "sinusoidal"},
    "learned": {"position": "learned", "max_position": 12},
    "shaw": {"position": "shaw", "relative_positions": 3},
    "t5": {"position": "t5", "relative_buckets": 4, "relative_max_distance": 6},
    "t5-shared": {"position": "t5", "relative_buckets": 4, "relative_max_distance": 6, "relative_shared": True},
    "alibi": {"position": "alibi"},
}
FALCON: dict[str, Any] = {"position": "alibi", "alibi_scaled": True, "kv_heads": 1}


def examples(number: int, *, seq2seq: bool) -> list[Encoded]:
    draw = random.Random(3)

    def ids(low: int = 2) -> np.ndarray:
        return np.array(draw.choices(range(3, 23), k=draw.randint(low, 10)), dtype=np.int32)

    made = []
    for _ in range(number):
        tgt = ids()
        labels = np.append(tgt[1:], 2).astype(np.int32)
        labels[: draw.randint(0, 1)] = IGNORED
        src = ids(1) if seq2seq else None
        align = None if src is None else np.array([[len(tgt) - 1, draw.randrange(len(src))]], dtype=np.int32)
        made.append(Encoded(src, tgt, labels, 0, align=align))
    return made


def build(seq2seq: bool, lora: bool, **shape: Any) -> Transformer:
    model = Transformer(tiny.config(vocab_size=23, encoder_layers=2 * seq2seq, **shape))
    init_weights(model, glorot=True)
    if lora:
        add_lora(model, ["q_proj", "v_proj", "down_proj"], rank=2, alpha=4.0)
        freeze_all_but_lora(model)
        for name, parameter in model.named_parameters():
            if ".lora_b" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def learn(model: Transformer, batch: Batch, objective: Objective) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients for each trained token."""
    model.zero_grad()
    loss = batch_loss(model, batch, objective=objective)
    loss.scaled.backward()
    gradients = {name: p.grad / loss.tokens for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.total) / loss.tokens, gradients


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("seq2seq", [False, True])
@pytest.mark.parametrize("name", [*POSITIONS, "alibi-falcon"])
def test_packed_equals_padded(name: str, seq2seq: bool, lora: bool) -> None:
    if name == "alibi-falcon" and seq2seq:
        pytest.skip("Falcon's bias is a decoder's")
    model = build(seq2seq, lora, **(FALCON if name == "alibi-falcon" else POSITIONS[name]))
    given = examples(20, seq2seq=seq2seq)
    padded = Batch.of(collate(given, pad_id=0, src_pad_id=1))
    packed = Batch.of(collate_rows(pack_rows(given, "pack", 24), pad_id=0, src_pad_id=1, isolate=True))
    assert packed.tgt_BT.shape[0] < 12 and (packed.tgt_BT.shape[1] > 12)
    guided = Objective(alignment=GuidedAlignment(0.3, layer=1, full_context=True))
    for objective in (Objective(label_smoothing=0.1), *([guided] if seq2seq else [])):
        loss, gradients = learn(model, padded, objective)
        packed_loss, packed_gradients = learn(model, packed, objective)
        assert packed_loss == pytest.approx(loss, abs=1e-6)
        assert gradients.keys() == packed_gradients.keys() and gradients
        for key, gradient in gradients.items():
            torch.testing.assert_close(packed_gradients[key], gradient, atol=1e-6, rtol=1e-5)


def test_documents_that_see_each_other_do_not_train_alike() -> None:
    model = build(False, False, position="rotary")
    given = examples(20, seq2seq=False)
    rows = pack_rows(given, "pack", 24)
    isolated, mixed = (
        learn(model, Batch.of(collate_rows(rows, pad_id=0, src_pad_id=1, isolate=isolate)), Objective())[0]
        for isolate in (True, False)
    )
    assert abs(isolated - mixed) > 1e-4


def test_a_document_longer_than_the_learned_positions_is_still_refused() -> None:
    model = build(False, False, position="learned", max_position=8)
    given = examples(20, seq2seq=False)
    packed = Batch.of(collate_rows(pack_rows(given, "pack", 24), pad_id=0, src_pad_id=1, isolate=True))
    with pytest.raises(Exception, match="max_position = 8 tokens with learned positions, but has 10"):
        batch_loss(model, packed)
