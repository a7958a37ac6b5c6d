"""The divergence loss of expanded blocks: its formula, its share of the loss and gradient, and where it is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tiny
from onmt_llm.config.learning import ExpansionConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.block_expansion import add_twins, freeze_all_but, recorded_outputs, twin_state, twins
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.divergence import divergence_loss
from onmt_llm.training.losses.objective import Objective

LABELS = torch.tensor([[-100, 5, 6, -100], [7, 8, 9, 10]])
IDS = torch.tensor([[3, 4, 5, 6], [6, 7, 8, 9]])
REAL = torch.tensor([[True, True, True, False], [True] * 4])
BATCH = Batch(None, None, IDS, LABELS, None, 2, 6)
BLOCKS = ["decoder.layers.0", "decoder.layers.1"]


def expanded(*, changed: bool) -> Transformer:
    model = tiny.build(tiny.llama(decoder_layers=2))
    add_twins(model, BLOCKS, 0.5)
    freeze_all_but(model, [f"{block}.twin" for block in BLOCKS])
    if changed:
        with torch.no_grad():
            for tensor in twin_state(model).values():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    return model.train()


def test_the_formula() -> None:
    outputs = [(torch.randn(2, 4, 3), torch.randn(2, 4, 3)) for _ in range(2)]
    expected = 0.0
    for base, twin in outputs:
        for row, place in REAL.nonzero().tolist():
            distance = (twin[row, place] - base[row, place]).square().sum()
            expected += float(distance / base[row, place].square().sum()) / (2 * int(REAL.sum()))
    assert float(divergence_loss(outputs, REAL.flatten())) == pytest.approx(expected, rel=1e-5)


def test_new_copies_do_not_diverge() -> None:
    model = expanded(changed=False)
    plain = batch_loss(model, BATCH)
    assert float(batch_loss(model, BATCH, objective=Objective(divergence=5.0)).total) == float(plain.total)


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_loss_has_the_term_and_its_gradient(recomputed: bool) -> None:
    model = expanded(changed=True)
    other = copy.deepcopy(model)
    if recomputed:
        set_recomputed(model, frozenset({"block"}))
    loss = batch_loss(model, BATCH, objective=Objective(divergence=2.0))
    loss.scaled.backward()
    with recorded_outputs(other) as outputs:
        plain = batch_loss(other, BATCH)
    expected = plain.scaled + 2.0 * plain.tokens * divergence_loss(outputs, REAL.flatten())
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6) and float(loss.nll) == float(plain.nll)
    for path, pair in twins(model).items():
        for name, parameter in pair.twin.named_parameters():
            gradient = other.get_submodule(path).twin.get_parameter(name).grad  # type: ignore[union-attr]
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    "options",
    [{}, {"expand_every": 2, "expand_type": "stack"}, {"expand_every": 2, "expand_stacks": ["encoder", "decoder"]}],
)
def test_it_needs_copies_in_the_decoder(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expand_divergence needs"):
        ExpansionConfig(expand_divergence=1.0, **options)
