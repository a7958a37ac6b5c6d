"""The chunked loss over trained positions against `F.cross_entropy` over all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora, lora_modules
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.cross_entropy import token_loss
from onmt_llm.training.losses.output_layer import OutputLayer

B, T, D, V = 3, 7, 8, 19


def batch(masked: float = 0.4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(B, T, D, generator=generator)
    labels = torch.randint(V, (B, T), generator=generator)
    return hidden, labels.masked_fill(torch.rand(B, T, generator=generator) < masked, -100)


class LowRankHead(nn.Module):
    """A frozen linear with a trainable low-rank part, as LoRA makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(D, V).requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(2, D))
        self.lora_b = nn.Parameter(torch.randn(V, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


HEADS = {
    "trainable": lambda: nn.Linear(D, V, bias=False),
    "biased": lambda: nn.Linear(D, V),
    "frozen": lambda: nn.Linear(D, V).requires_grad_(False),
    "lora": LowRankHead,
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", list(HEADS))
@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
def test_loss_and_gradients_equal_cross_entropy(kind: str, smoothing: float, chunk_tokens: int) -> None:
    torch.manual_seed(0)
    head = HEADS[kind]()
    hidden, labels = batch()
    ours, reference = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()

    expected = F.cross_entropy(
        head(reference).flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="sum"
    )
    (3.0 * expected).backward()
    expected_grads = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    head.zero_grad()

    parameters = [p for p in head.parameters() if p.requires_grad]
    loss = token_loss(
        ours,
        labels,
        OutputLayer(head, parameters, V),
        label_smoothing=smoothing,
        scale=3.0,
        chunk_tokens=chunk_tokens,
    )
    loss.scaled.backward()

    assert loss.tokens == int((labels != -100).sum())
    torch.testing.assert_close(loss.total, expected.detach())
    torch.testing.assert_close(ours.grad, reference.grad)
    assert {n for n, p in head.named_parameters() if p.grad is not None} == set(expected_grads)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(head.get_parameter(name).grad, grad)


def test_likelihood_and_hits_ignore_label_smoothing() -> None:
    head = nn.Linear(D, V)
    hidden, labels = batch()
    with torch.no_grad():
        plain = token_loss(hidden, labels, OutputLayer(head, [], V))
        smooth = token_loss(hidden, labels, OutputLayer(head, [], V), label_smoothing=0.3)
        hits = (head(hidden).argmax(-1) == labels).sum()
    assert plain.nll == smooth.nll == plain.total != smooth.total
    assert plain.correct == hits


def test_only_trained_positions_reach_the_head_in_bounded_chunks() -> None:
    seen: list[int] = []
    head = nn.Linear(D, V)

    def recording(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return head(x)

    hidden, labels = batch()
    token_loss(hidden.requires_grad_(), labels, OutputLayer(recording, list(head.parameters()), V), chunk_tokens=4)
    assert sum(seen) == int((labels != -100).sum())
    assert max(seen) == 4


def test_a_batch_without_trained_tokens_has_zero_loss_and_gradient() -> None:
    hidden, labels = batch(masked=2.0)
    hidden.requires_grad_()
    loss = token_loss(hidden, labels, OutputLayer(nn.Linear(D, V), [], V))
    loss.scaled.backward()
    assert loss.tokens == 0 and loss.total == 0
    assert not hidden.grad.any()


def test_softmax_is_float32_whatever_the_model_computes_in() -> None:
    head = nn.Linear(D, V, dtype=torch.bfloat16)
    hidden, labels = batch()
    loss = token_loss(hidden.bfloat16().requires_grad_(), labels, OutputLayer(head, list(head.parameters()), V))
    assert loss.total.dtype == torch.float32
    expected = F.cross_entropy(head(hidden.bfloat16()).float().flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, expected.detach())


MODELS: dict[str, tuple[dict[str, bool], list[str], bool]] = {
    "tied, all trained": ({"tie_embeddings": True, "lm_head_bias": True}, [], False),
    "untied, all trained": ({"lm_head_bias": True}, [], False),
    "tied, embedding adapted": ({"tie_embeddings": True}, ["q_proj"], True),
    "output layer adapted": ({}, ["lm_head"], False),
    "output layer frozen": ({}, ["q_proj"], False),
}


@pytest.mark.parametrize("kind", list(MODELS))
def test_gradients_of_whole_models_equal_those_of_plain_cross_entropy(kind: str, tiny_config: ModelConfig) -> None:
    shape, layers, embedding = MODELS[kind]
    model = Transformer(tiny_config.model_copy(update=shape))
    init_weights(model)
    if layers:
        add_lora(model, layers, rank=2, alpha=4.0, embedding=embedding)
        freeze_all_but_lora(model)
        for module in lora_modules(model).values():
            nn.init.normal_(module.lora_b, std=0.1)
    tgt, labels = torch.randint(23, (2, 6)), torch.randint(23, (2, 6))
    labels[0, :3] = -100
    F.cross_entropy(model(tgt).flatten(0, 1), labels.flatten(), reduction="sum").backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batch_loss(model, Batch(None, None, tgt, labels, None, 9, 2)).scaled.backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5)
