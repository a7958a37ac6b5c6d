"""Log-probabilities of labels, chunk by chunk, against torch's over all positions."""

from __future__ import annotations

import pytest
import torch

from onmt_llm.training.losses.log_probs import label_log_probs
from onmt_llm.training.losses.output_layer import OutputLayer

B, T, D, V = 3, 5, 6, 11


@pytest.fixture
def case() -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    labels_BT = torch.randint(0, V, (B, T))
    labels_BT[0, 2:] = -100
    labels_BT[2] = -100
    return torch.nn.Linear(D, V), torch.randn(B, T, D, requires_grad=True), labels_BT


def reference(head: torch.nn.Linear, hidden_BTD: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logp_BTV = head(hidden_BTD).log_softmax(-1)
    picked_BT = logp_BTV.gather(2, labels_BT.clamp(min=0)[..., None]).squeeze(2)
    return picked_BT.masked_fill(labels_BT == -100, 0.0).sum(1)


def output_of(head: torch.nn.Linear, *, trained: bool = True) -> OutputLayer:
    return OutputLayer(head, list(head.parameters()) if trained else [], V)


@pytest.mark.parametrize("chunk", [0, 1, 3, 100])
def test_values_and_gradients_do_not_depend_on_chunks(case, chunk: int) -> None:
    head, hidden, labels = case
    expected = reference(head, hidden, labels)
    found = label_log_probs(hidden, labels, output_of(head), chunk_tokens=chunk)
    torch.testing.assert_close(found.total_B, expected)
    assert found.count_B.tolist() == [2, 5, 0] and float(found.total_B[2]) == 0
    torch.testing.assert_close(found.mean_B, expected / torch.tensor([2, 5, 1]))
    weights_B = torch.tensor([0.5, -2.0, 3.0])  # as a preference loss weighs its rows
    inputs = [hidden, *head.parameters()]
    gradients = torch.autograd.grad((found.total_B * weights_B).sum(), inputs)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights_B).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_correct_positions_are_those_with_no_likelier_token(case) -> None:
    head, hidden, labels = case
    best_BT = head(hidden).argmax(-1)
    found = label_log_probs(hidden, torch.where(labels == -100, labels, best_BT), output_of(head))
    assert torch.equal(found.correct_B, found.count_B)
    worst_BT = head(hidden).argmin(-1)
    found = label_log_probs(hidden, torch.where(labels == -100, labels, worst_BT), output_of(head))
    assert found.correct_B.sum() == 0


def test_a_frozen_output_layer_still_passes_gradients_on(case) -> None:
    head, hidden, labels = case
    head.requires_grad_(False)
    label_log_probs(hidden, labels, output_of(head, trained=False)).total_B.sum().backward()
    assert hidden.grad is not None and hidden.grad[0, :2].abs().sum() > 0 and hidden.grad[2].abs().sum() == 0


def test_rows_can_be_chosen(case) -> None:
    head, hidden, labels = case
    found = label_log_probs(hidden, labels, output_of(head))
    chosen = found.rows(torch.tensor([False, True, False]))
    assert chosen.count_B.tolist() == [5] and torch.equal(chosen.total_B, found.total_B[1:2])


def test_a_batch_without_labels_has_sums_of_zero(case) -> None:
    head, hidden, labels = case
    found = label_log_probs(hidden, torch.full_like(labels, -100), output_of(head))
    assert found.total_B.tolist() == [0, 0, 0]
    found.total_B.sum().backward()
