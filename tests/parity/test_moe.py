"""Mixtures of experts against `transformers`: padded batches, generation, both layouts of weights, training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity.test_converters_hf import save_model
from parity.test_families import MODELS
from torch import Tensor

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.rules import apply, overridden
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.generate.open import open_engine
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.objective import Objective

transformers = pytest.importorskip("transformers")

KINDS = {name: (kind, settings) for name, (kind, settings) in MODELS.items() if "num_experts_per_tok" in settings}
ROWS = 259
"""The tokens of the tokeniser that `save_model` writes: every row of the model is one."""
LENGTHS = (9, 4, 6)


@pytest.fixture(params=KINDS)
def models(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Any, Path]:
    """A model of transformers, and its checkpoint."""
    kind, settings = KINDS[request.param]
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ends, "vocab_size": ROWS})
    return theirs, convert(tmp_path / "hf", tmp_path / "ours")


def ids() -> Tensor:
    return torch.randint(3, ROWS, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(4))


def is_real(*, left: bool = False) -> Tensor:
    steps = torch.arange(max(LENGTHS))
    steps = steps.flip(0) if left else steps
    return steps[None] < torch.tensor(LENGTHS)[:, None]


@torch.no_grad()
def test_a_padded_batch(models: tuple[Any, Path]) -> None:
    theirs, ours = models
    expected = theirs(ids(), attention_mask=is_real().long()).logits
    assert (load_model(ours)(ids()) - expected)[is_real()].abs().max() <= 1e-5


@torch.no_grad()
def test_greedy_answers(models: tuple[Any, Path]) -> None:
    theirs, ours = models
    left, prompts = is_real(left=True), ids()
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 4}
    found = theirs.generate(prompts.masked_fill(~left, 0), attention_mask=left.long(), **options)
    engine = open_engine(ours, device="cpu")
    vocab = engine.codec.vocab
    texts = [[vocab[i] for i in row[keep].tolist()] for row, keep in zip(prompts, left, strict=True)]
    answers = engine.generate(texts, GenerationConfig(max_length=12, min_length=4))
    for (answer,), row in zip(answers, found[:, max(LENGTHS) :].tolist(), strict=True):
        end = row.index(2) if 2 in row else len(row)
        assert answer.tokens == [vocab[i] for i in row[:end]]


def test_all_experts_in_one_tensor(models: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, ours = models
    theirs.save_pretrained(tmp_path / "hf", save_original_format=False)
    stacked = convert(tmp_path / "hf", tmp_path / "stacked")
    one, other = (dict(Checkpoint.open(path).tensors()) for path in (ours, stacked))
    assert one.keys() == other.keys() and any(".experts.5.down_proj" in name for name in one)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@dataclass(frozen=True)
class Tensors:
    """A `TensorSource` of a mapping."""

    held: Mapping[str, Tensor]

    def names(self) -> list[str]:
        return list(self.held)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.held[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self.held[name]


@pytest.mark.parametrize("recomputed", [(), ("ffn",), ("block",)])
def test_loss_and_gradients(models: tuple[Any, Path], recomputed: tuple[str, ...]) -> None:
    theirs, ours = models
    has_balance = hasattr(theirs.config, "router_aux_loss_coef")  # not in DeepSeek
    real, weight = is_real(), 0.3 if has_balance else 0.0
    labels = ids().roll(-1, 1).masked_fill(~real, -100)
    labels[:, :2] = -100  # tokens of a prompt: routed, but not trained
    outputs = theirs.train()(ids(), attention_mask=real.long(), output_router_logits=True)
    expected = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    if has_balance:
        expected = expected + weight * outputs.aux_loss
    expected.backward()

    model = load_model(ours).train().requires_grad_(True)
    set_recomputed(model, recomputed)
    batch = Batch(None, None, ids(), labels, None, int((labels != -100).sum()), len(LENGTHS))
    loss = batch_loss(model, batch, objective=Objective(balance=weight))
    (loss.scaled / loss.tokens).backward()
    torch.testing.assert_close(loss.scaled / loss.tokens, expected)
    if has_balance:
        torch.testing.assert_close(loss.balance / loss.tokens, outputs.aux_loss)
    torch.testing.assert_close(loss.total, loss.scaled)

    family = next(family for family in FAMILIES if family.model_type == theirs.config.model_type)
    stored = theirs.state_dict().keys()
    zeros = {name: torch.zeros_like(one) for name, one in theirs.named_buffers() if name in stored}
    there = Tensors({**zeros, **{name: one.grad for name, one in theirs.named_parameters()}})
    others = [one for one in family.others(model.config) if set(one.theirs) <= there.held.keys()]
    rules = overridden(family.rules(model.config), others)
    gradients = dict(apply(rules, there, parameter_shapes(model.config)))
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradients[name], atol=2e-6, rtol=1e-4, msg=name)
