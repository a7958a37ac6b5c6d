"""Activation checkpointing: the same gradients with less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.lora.variant import LoRAVariant
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer, set_dropout

MODELS = {
    "llama": tiny.LLAMA,
    "falcon": dict(kv_heads=1, position="rotary", parallel_residual=True, shared_norm=True),
    "neox": dict(position="rotary", parallel_residual=True),
    "marian": dict(encoder_layers=2, norm_position="post", share_embeddings=True, tie_embeddings=True),
    "shaw": dict(encoder_layers=2, position="shaw", relative_positions=2, kv_heads=2),
    "t5": dict(encoder_layers=2, position="t5", relative_buckets=4, relative_max_distance=6, relative_shared=True),
}
PARTS = [{"mha"}, {"ffn"}, {"mha", "ffn"}, {"block"}, {"block", "mha", "ffn", "lora"}]


def build(**extra: Any) -> Transformer:
    return tiny.build(tiny.config(vocab_size=50, **extra)).train()


def gradients(model: Transformer, parts: set[str], **inputs: Any) -> tuple[list[Tensor], int]:
    """Gradients of all trained parameters, and the bytes that were kept for them beside the parameters."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    set_recomputed(model, parts)
    model.zero_grad()
    torch.manual_seed(3)
    ids = [tiny.token_ids(2, 7)] * (2 if model.encoder is not None else 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(*ids, **inputs).logsumexp(-1).sum()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept.values())


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_stay_and_less_is_kept(name: str, dropout: float) -> None:
    model = build(**MODELS[name])
    set_dropout(model, dropout, dropout)
    expected, most = gradients(model, set())
    kept = {}
    for parts in PARTS:
        found, kept[frozenset(parts)] = gradients(model, parts)
        assert same(found, expected), parts
    assert max(kept.values()) < most
    assert kept[frozenset({"mha", "ffn"})] < min(kept[frozenset({"mha"})], kept[frozenset({"ffn"})])
    assert kept[frozenset({"block"})] <= kept[frozenset({"mha", "ffn"})]


def test_packed_documents_too() -> None:
    model, doc_BT = build(**tiny.LLAMA), torch.tensor([[1, 1, 1, 2, 2, 2, 0], [3, 4, 4, 4, 4, 5, 5]])
    expected, _ = gradients(model, set(), doc_BT=doc_BT)
    for parts in PARTS:
        assert same(gradients(model, parts, doc_BT=doc_BT)[0], expected), parts


@pytest.mark.parametrize("quant_type", ["", "int8", "bnb_8bit", "bnb_NF4"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_quantised_layers_with_dropout(quant_type: str, dora: bool) -> None:
    if quant_type.startswith("bnb"):
        pytest.importorskip("bitsandbytes")
    model, names = build(**tiny.LLAMA), ["q_proj", "v_proj", "up_proj", "down_proj"]
    if quant_type:
        quantize(model, names, quant_type)
    add_lora(model, names, rank=2, alpha=4.0, dropout=0.3, variant=LoRAVariant(dora=dora))
    freeze_all_but_lora(model)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.1)
    expected, most = gradients(model, set())
    for parts in [{"lora"}, *PARTS]:
        found, kept = gradients(model, parts)
        assert same(found, expected) and kept < most, parts


def test_an_attention_that_is_looked_at_is_kept() -> None:
    model = build(encoder_layers=1)
    ids, mask_BT = tiny.token_ids(2, 7), torch.ones(2, 7, dtype=torch.bool)
    found = []
    for parts in (set(), {"mha", "ffn"}, {"block"}):
        set_recomputed(model, parts)
        model.zero_grad()
        hidden, attention = model.decode_with_alignment(ids, model.encode(ids), align=(-1, 2), full_context_BT=mask_BT)
        (hidden.square().sum() + attention.square().sum()).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert same(found[1], found[0]) and same(found[2], found[0])
