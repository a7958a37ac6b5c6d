"""Further loss terms: language model prior and guided alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.cross_entropy import token_loss
from onmt_llm.training.losses.lm_prior import LmPrior
from onmt_llm.training.losses.objective import GuidedAlignment, Objective, alignment_loss
from onmt_llm.training.losses.output_layer import OutputLayer

B, T, D, V = 3, 5, 6, 11
UNK, EOS = 0, 3
LM = {"encoder_layers": 0, "decoder_layers": 1, "hidden_size": 16, "heads": 2, "ffn_size": 24, "position": "rotary"}


@pytest.mark.parametrize("chunk_tokens", [4, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_prior_is_the_divergence_from_the_language_model(smoothing: float, chunk_tokens: int) -> None:
    weight, tau = 0.7, 2.0
    head = torch.nn.Linear(D, V)
    labels_BT = torch.randint(4, V, (B, T))
    labels_BT[1, 3:] = -100
    batch = Batch(None, None, torch.randint(0, V, (B, T)), labels_BT, None, 13, B)
    lm_logits_BTV = torch.randn(B, T, V)
    prior = LmPrior(weight, tau, lambda batch: lambda index: lm_logits_BTV.flatten(0, 1)[index], UNK, EOS)

    reference = torch.randn(B, T, D, requires_grad=True)
    trained = labels_BT != -100
    logits_NV = head(reference)[trained]
    q_NV = F.log_softmax(lm_logits_BTV[trained] / tau, dim=-1)
    q_NV[:, UNK] = -50
    q_NV[:, EOS] -= 20
    divergence = F.kl_div(F.log_softmax(logits_NV / tau, dim=-1), q_NV, reduction="sum", log_target=True)
    plain = F.cross_entropy(logits_NV, labels_BT[trained], label_smoothing=smoothing, reduction="sum")
    expected = plain + weight * tau**2 * divergence
    gradients = torch.autograd.grad(expected, [reference, *head.parameters()])

    hidden = reference.detach().requires_grad_()
    loss = token_loss(
        hidden,
        labels_BT,
        OutputLayer(head, list(head.parameters()), V),
        label_smoothing=smoothing,
        terms=[prior(batch)],
        chunk_tokens=chunk_tokens,
    )
    loss.scaled.backward()
    torch.testing.assert_close(loss.total, expected.detach(), rtol=1e-5, atol=1e-5)
    for got, wanted in zip([hidden.grad, *(p.grad for p in head.parameters())], gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        again = token_loss(hidden, labels_BT, OutputLayer(head, [], V), label_smoothing=smoothing, terms=[prior(batch)])
    torch.testing.assert_close(again.total, loss.total)


def test_terms_add_up() -> None:
    head, labels_BT = torch.nn.Linear(D, V), torch.randint(V, (B, T))
    batch = Batch(None, None, labels_BT, labels_BT, None, B * T, B)
    logits_MV, found = torch.randn(B * T, V), []
    for weights in ((0.5,), (0.25, 0.25)):
        hidden = torch.ones(B, T, D, requires_grad=True)
        terms = [LmPrior(each, 2.0, lambda _: lambda index: logits_MV[index], UNK, EOS)(batch) for each in weights]
        loss = token_loss(hidden, labels_BT, OutputLayer(head, [], V), terms=terms, chunk_tokens=4)
        loss.scaled.backward()
        found.append((loss.total, hidden.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.fixture
def language_model(copy_task: Any) -> Path:
    """A language model of the copy task's target side: its folder."""
    save = {"save_model": str(copy_task.folder / "lm"), "train_steps": 3}
    return copy_task.run("lm", architecture=LM, run={**save, "seed": 7}).checkpoint


@pytest.mark.parametrize("kind", ["checkpoint", "ctranslate2"])
def test_a_translation_model_is_trained_with_a_prior(copy_task: Any, language_model: Path, kind: str) -> None:
    def go(name: str, model: Path, weight: float) -> dict[str, torch.Tensor]:
        objective = {"lm_prior_model": str(model), "lm_prior_lambda": weight, "lm_prior_tau": 2.0}
        copy_task.run(name, loss=objective, run={"save_model": str(copy_task.folder / name), "train_steps": 3})
        return copy_task.tensors(f"{name}_step_3")

    copy_task.run("none", run={"save_model": str(copy_task.folder / "none"), "train_steps": 3})
    none, prior = copy_task.tensors("none_step_3"), go("some", language_model, 0.5)
    if kind == "checkpoint":
        off = go("off", language_model, 0.0)
        assert all(torch.equal(none[name], off[name]) for name in none)
    else:
        from onmt_llm.releasing import release

        folder = copy_task.folder / "lm_ct2"
        release(str(language_model), str(folder), format="ctranslate2", quantization="float32")
        released = go("released", folder, 0.5)
        for name, tensor in prior.items():
            torch.testing.assert_close(released[name], tensor, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(none[name], prior[name]) for name in none)


def test_a_prior_that_does_not_fit_is_refused(copy_task: Any, language_model: Path) -> None:
    copy_task.run("mt", run={"save_model": str(copy_task.folder / "mt"), "train_steps": 1})

    def objective(path: Path) -> dict[str, Any]:
        return {"loss": {"lm_prior_model": str(path), "lm_prior_lambda": 0.5}}

    with pytest.raises(ConfigError, match=r"must be a language model, but .*mt_step_1 is an encoder-decoder"):
        copy_task.run(**objective(copy_task.folder / "mt_step_1"))
    (copy_task.folder / "vocab.txt").write_text("w3\nw4\nw0\nw1\n")
    with pytest.raises(ConfigError, match=r"must have the target vocabulary(?s:.)*differs at line 5"):
        copy_task.run(**objective(language_model))


def test_alignment_loss_is_cross_entropy_with_the_partners_of_each_token() -> None:
    attention = torch.softmax(torch.randn(2, 4, 3), dim=-1)
    pairs = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 1, 2], [1, 0, 0], [1, 2, 1]])
    expected = -(
        attention[0, 0, 0].log()
        + 0.5 * attention[0, 1, 1].log()
        + 0.5 * attention[0, 1, 2].log()
        + attention[1, 0, 0].log()
        + attention[1, 2, 1].log()
    )
    torch.testing.assert_close(alignment_loss(attention, pairs), expected)


@pytest.mark.parametrize(("heads", "full_context"), [(0, False), (1, False), (1, True)])
def test_guided_alignment_teaches_attention(copy_task: Any, heads: int, full_context: bool) -> None:
    data = {
        name: {**paths, "path_align": str(copy_task.folder / f"{name}.align")}
        for name, paths in copy_task.corpora.items()
    }
    measured = {}
    for name, weight in (("free", 0.0), ("guided", 1.0)):
        copy_task.run(
            name,
            corpora={"data": data},
            batching={"batch_size": 32, "bucket_size": 128},
            loss={
                "lambda_align": weight,
                "alignment_layer": -1,
                "alignment_heads": heads,
                "full_context_alignment": full_context,
            },
            run={
                "save_model": str(copy_task.folder / name),
                "train_steps": 60,
                "save_checkpoint_steps": 60,
                "seed": 7,
                "param_init_glorot": True,
            },
        )
        model = load_model(copy_task.folder / f"{name}_step_60")
        stored = Checkpoint.open(copy_task.folder / f"{name}_step_60").config
        # what `report_align` and a release take alignments from
        assert (stored.alignment_layer, stored.alignment_heads) == ((0, heads) if weight else (-1, 1))
        batch = _batch()
        guide = Objective(alignment=GuidedAlignment(1.0, 0, heads, full_context))
        with torch.no_grad():
            both, alone = batch_loss(model, batch, objective=guide), batch_loss(model, batch)
        measured[name] = float(both.total - alone.total) / len(batch.align_M3)
        assert both.nll == alone.nll
    assert measured["guided"] < 0.5 * measured["free"]


def _batch() -> Batch:
    words = torch.tensor([[4, 7, 9, 5], [6, 6, 8, 1]])
    real = torch.tensor([[True] * 4, [True] * 3 + [False]])
    tgt = torch.cat([torch.tensor([[2], [2]]), words], dim=1)
    labels = torch.tensor([[4, 7, 9, 5, 3], [6, 6, 8, 3, -100]])
    align = torch.tensor([[row, i, i] for row, length in ((0, 4), (1, 3)) for i in range(length)])
    return Batch(words, real, tgt, labels, None, 9, 2, align_M3=align)


@pytest.mark.parametrize(
    ("objective", "architecture", "message"),
    [
        ({"alignment_layer": -3}, {}, "one of the decoder's 1 layers, from -1 to 0, but is -3"),
        ({"alignment_layer": 0, "alignment_heads": 3}, {}, "at most heads, 2, but is 3"),
        ({"alignment_layer": 0}, {}, "needs a path_align in every corpus, but train has none"),
        ({}, {"encoder_layers": 0}, "must be 0 for a language model"),
    ],
)
def test_alignments_that_cannot_be_had_are_refused(
    copy_task: Any, objective: dict[str, Any], architecture: dict[str, Any], message: str
) -> None:
    shape = {**copy_task.config().architecture.model_dump(exclude_unset=True), **architecture}
    with pytest.raises(ConfigError, match=message):
        copy_task.run(loss={"lambda_align": 0.1, **objective}, architecture=shape)
