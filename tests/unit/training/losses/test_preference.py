"""DPO, ORPO and KTO: the losses equal TRL's; runs learn, resume and log their rewards."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onmt_llm.checkpoint.load import load_model
from onmt_llm.config.learning import REFERENCE_FREE, UNPAIRED, ObjectiveName, PreferenceConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError
from onmt_llm.nn.lora.model import add_lora, lora_state, without_adapters
from onmt_llm.nn.lora.variant import LoRAVariant
from onmt_llm.nn.quantized import quantize, set_int8_products
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.log_probs import LogProbs, label_log_probs
from onmt_llm.training.losses.output_layer import OutputLayer
from onmt_llm.training.losses.preference import (
    PREFERENCE_LOSSES,
    PreferenceLoss,
    PreferenceLosses,
    RatedAnswers,
    dpo,
    kto,
    orpo,
)
from tiny import GATED_LM

ROOT = Path(__file__).parents[4]
FIXTURE = ROOT / "tests/data/preference.npz"


def fixture(loss: str, file: Path = FIXTURE) -> dict[str, torch.Tensor]:
    with np.load(file) as arrays:
        return {
            name.partition("/")[2]: torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith(f"{loss}/")
        }


def labels(ids_BT: torch.Tensor, answer_BT: torch.Tensor) -> torch.Tensor:
    """Labels of all positions but the last."""
    return torch.where(answer_BT[:, 1:].bool(), ids_BT[:, 1:], -100)


def given(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> LogProbs:
    return label_log_probs(logits_BTV[:, :-1], labels_BT, OutputLayer(lambda logits: logits, [], 16), chunk_tokens=3)


def outcome(loss: str, made: dict[str, torch.Tensor], head: torch.nn.Linear) -> PreferenceLosses:
    labels_BT = labels(made["ids"], made["answer"])
    hidden_BTD = made["hidden"][:, :-1]
    new = label_log_probs(hidden_BTD, labels_BT, OutputLayer(head, [head.weight], 16), chunk_tokens=3)
    first = torch.arange(len(labels_BT)) < len(labels_BT) // 2
    if loss == "orpo":
        return orpo(RatedAnswers(new, None, first, torch.zeros(())), PreferenceConfig(orpo_beta=0.3))
    old = given(made["reference"], labels_BT)
    if loss == "kto":
        foreign_BT = labels(made["foreign_ids"], made["foreign_answer"])
        foreign = given(made["foreign_policy"], foreign_BT), given(made["foreign_reference"], foreign_BT)
        divergence = (foreign[0].total_B - foreign[1].total_B).mean().clamp(min=0)
        settings = PreferenceConfig(kto_beta=0.3, kto_desirable_weight=1.5, kto_undesirable_weight=0.5)
        return kto(RatedAnswers(new, old, made["label"], divergence), settings)
    kind: Any = loss.removeprefix("dpo_")
    settings = PreferenceConfig(dpo_beta=0.3, dpo_loss=kind, dpo_label_smoothing=0.1 if kind == "robust" else 0.0)
    return dpo(RatedAnswers(new, old, first, torch.zeros(())), settings)


def test_the_preference_losses_are_the_values_of_the_option() -> None:
    assert {"sft", *PREFERENCE_LOSSES} == {*get_args(ObjectiveName)} >= REFERENCE_FREE | UNPAIRED


LOSSES = ["dpo_sigmoid", "dpo_hinge", "dpo_ipo", "dpo_robust", "kto", "orpo"]


def check_against_trl(loss: str, file: Path = FIXTURE) -> None:
    made = fixture(loss, file)
    head = torch.nn.Linear(16, 16, bias=False)
    head.weight.data = made["head"].clone()
    found = outcome(loss, made, head)
    mean = found.losses_P.mean()
    if loss == "orpo":
        # TRL's likelihood is that of prompt and answer; only the other term is compared
        half = len(made["ids"]) // 2
        labels_BT = labels(made["ids"], made["answer"])[:half]
        logp = F.log_softmax(head(made["hidden"][:half, :-1]), -1)
        picked = logp.gather(2, labels_BT.clamp(min=0)[..., None])[..., 0] * (labels_BT >= 0)
        mean = mean + (picked.sum(1) / (labels_BT >= 0).sum(1)).mean()
    torch.testing.assert_close(mean.detach(), made["loss"].float(), atol=1e-5, rtol=1e-5)
    mean.backward()
    torch.testing.assert_close(head.weight.grad, made["gradient"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_are_those_of_trl(loss: str) -> None:
    check_against_trl(loss)


@pytest.mark.parametrize("certain", [True, False])
def test_orpo_has_a_gradient_for_answers_of_probability_one(certain: bool) -> None:
    logits_BTV = torch.zeros(2, 3, 4)
    logits_BTV[int(not certain), :, 1] = 200.0
    logits_BTV.requires_grad_()
    answers = given(logits_BTV, torch.ones(2, 2, dtype=torch.long))
    first = torch.tensor([True, False])
    orpo(RatedAnswers(answers, None, first, torch.zeros(())), PreferenceConfig()).losses_P.sum().backward()
    assert logits_BTV.grad is not None and logits_BTV.grad.isfinite().all()


@pytest.mark.slow
def test_the_fixture_is_what_trl_says_now(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    script = ROOT / "tests/oracle/make_trl_fixtures.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "new.npz")], check=True, capture_output=True)
    for loss in LOSSES:
        check_against_trl(loss, tmp_path / "new.npz")


def test_chunked_log_probs_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 8, requires_grad=True)
    head = torch.nn.Linear(8, 11)
    marks = torch.randint(0, 11, (3, 7)).masked_fill(torch.rand(3, 7) < 0.4, -100)
    weights = torch.tensor([1.0, -2.0, 0.5])
    logp = F.log_softmax(head(hidden), -1).gather(2, marks.clamp(min=0)[..., None])[..., 0] * (marks >= 0)
    (logp.sum(1) * weights).sum().backward()
    wanted = [hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    for leaf in (hidden, head.weight, head.bias):
        leaf.grad = None
    sizes: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return head(x)

    found = label_log_probs(hidden, marks, OutputLayer(counted, [head.weight, head.bias], 11), chunk_tokens=4)
    torch.testing.assert_close(found.total_B, logp.sum(1))
    assert found.count_B.tolist() == (marks >= 0).sum(1).tolist()
    (found.total_B * weights).sum().backward()
    for got, want in zip([hidden.grad, head.weight.grad, head.bias.grad], wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert max(sizes) == 4


@torch.no_grad()
def test_a_model_without_its_adapters_is_its_base(tiny_model: Transformer) -> None:
    ids = torch.tensor([[1, 5, 7, 3]])
    expected = tiny_model.eval()(ids)
    add_lora(tiny_model, ["q_proj", "up_proj"], rank=3, alpha=6.0, embedding=True, variant=LoRAVariant(dora=True))
    for tensor in lora_state(tiny_model).values():
        tensor.add_(0.3)
    assert (tiny_model(ids) - expected).abs().max() > 0.1
    with without_adapters(tiny_model):
        assert torch.equal(tiny_model(ids), expected)
    assert (tiny_model(ids) - expected).abs().max() > 0.1


LORA = {"lora_layers": ["q_proj", "v_proj", "up_proj", "down_proj"], "lora_rank": 4, "lora_alpha": 8.0}


@pytest.fixture
def rated(copy_task: Any) -> Any:
    """The copy task's folder with a base model, and answers whose chosen side uses half of the words."""
    rng = random.Random(3)
    words = [f"w{i}" for i in range(12)]
    for name, count in (("train", 200), ("valid", 20)):
        with (
            open(copy_task.folder / f"{name}_pairs.jsonl", "w") as pairs,
            open(copy_task.folder / f"{name}_labels.jsonl", "w") as single,
        ):
            for number in range(count):
                parts = (words, words[:6], words[6:])
                prompt, better, worse = (" ".join(rng.choices(part, k=rng.randint(2, 4))) for part in parts)
                print(json.dumps({"prompt": prompt, "chosen": better, "rejected": worse}), file=pairs)
                good = number % 2 == 0
                answer = {"prompt": prompt, "completion": better if good else worse, "label": good}
                print(json.dumps(answer), file=single)
    copy_task.run("base", architecture=GATED_LM, run={"save_model": str(copy_task.folder / "base"), "train_steps": 1})
    return copy_task


def run(task: Any, name: str, objective: str, *, more: dict[str, Any] | None = None, **sections: Any) -> Any:
    kind = "labels" if objective == "kto" else "pairs"
    data = {part: {"path_jsonl": str(task.folder / f"{part}_{kind}.jsonl")} for part in ("train", "valid")}
    settings = {"save_model": str(task.folder / name), "seed": 7, "train_steps": 40, "save_checkpoint_steps": 20}
    begin = {"train_from": str(task.folder / "base_step_1"), "reset_optim": "all", "valid_steps": 40}
    return task.run(
        name,
        corpora={"data": data, "objective": objective},
        architecture=GATED_LM,
        optimizer={"learning_rate": 0.01},
        run={**settings, **begin, **(more or {})},
        logging={"progress": "none", "report_every": 20},
        **sections,
    )


def rows(task: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (task.folder / f"{name}_metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto"])
def test_better_answers_win_with_the_base_as_reference(rated: Any, objective: str) -> None:
    result = run(rated, "toy", objective, lora=LORA, validation={"early_stopping_criteria": ["reward_accuracy"]})
    first, *_, last = [row for row in rows(rated, "toy") if row["split"] == "train"]
    assert last["reward_margin"] > first["reward_margin"] > 0 and last["reward_accuracy"] > 75
    assert last["loss"] < first["loss"]
    (valid,) = [row for row in rows(rated, "toy") if row["split"] == "valid"]
    assert valid["reward_accuracy"] >= 70
    if objective == "kto":
        assert valid["divergence"] >= 0
    run(rated, "half", objective, lora=LORA, more={"train_steps": 20})
    begin = {"train_from": str(rated.folder / "half_step_20"), "reset_optim": "none"}
    run(rated, "half", objective, lora=LORA, more=begin)
    whole, resumed = rated.tensors("toy_step_40"), rated.tensors("half_step_40")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert load_model(result.checkpoint) is not None


@pytest.mark.parametrize("added", [{"lora": {**LORA, "lora_init": "pissa"}}, {"expansion": {"expand_every": 1}}])
def test_what_is_new_has_the_loss_of_no_preference_at_all(rated: Any, added: dict[str, Any]) -> None:
    run(rated, "one", "dpo", **added, more={"train_steps": 1})
    (train, *_) = rows(rated, "one")
    assert train["loss"] == pytest.approx(np.log(2), abs=1e-4) and abs(train["reward_margin"]) < 1e-4


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_recomputed_parts_have_the_same_reference(rated: Any, objective: str) -> None:
    few = {"train_steps": 4, "save_checkpoint_steps": 4}
    run(rated, "kept", objective, lora=LORA, more=few)
    run(rated, "again", objective, lora=LORA, more={**few, "use_ckpting": ["mha", "ffn", "lora"]})
    kept, again = rated.tensors("kept_step_4"), rated.tensors("again_step_4")
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items())


def test_whole_models_need_a_reference_and_keep_to_it(rated: Any) -> None:
    for sections in ({}, {"expansion": {"expand_every": 1, "expand_type": "stack"}}):
        with pytest.raises(ConfigError, match=r"objective: dpo must have a reference model if the whole"):
            run(rated, "toy", "dpo", **sections)
    reference = {"preference": {"reference_model": str(rated.folder / "base_step_1")}}
    run(rated, "whole", "dpo", **reference)
    run(rated, "half", "dpo", more={"train_steps": 20}, **reference)
    begin = {"train_from": str(rated.folder / "half_step_20"), "reset_optim": "none"}
    run(rated, "half", "dpo", more=begin, **reference)
    whole, resumed = rated.tensors("whole_step_40"), rated.tensors("half_step_40")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert [row for row in rows(rated, "whole") if row["split"] == "train"][-1]["reward_accuracy"] > 80
    own = str(rated.folder / "half_step_40")
    more = {**begin, "train_from": own, "train_steps": 44, "save_checkpoint_steps": 1, "keep_checkpoint": 1}
    run(rated, "half", "dpo", more=more, preference={"reference_model": own})
    assert [path.name for path in sorted(rated.folder.glob("half_step_*"))] == ["half_step_40", "half_step_44"]
    with pytest.raises(ConfigError, match="reference_model must have the vocabulary"):
        shape = {**GATED_LM, "hidden_size": 16}
        other = {"save_model": str(rated.folder / "other"), "train_steps": 1}
        (rated.folder / "big.txt").write_text("".join(f"x{i}\n" for i in range(40)))
        vocabulary = {"src_vocab": str(rated.folder / "big.txt"), "share_vocab": True}
        rated.run("other", architecture=shape, vocabulary=vocabulary, run=other)
        run(rated, "toy", "dpo", preference={"reference_model": str(rated.folder / "other_step_1")})


def test_other_terms_of_the_loss_are_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be left out with objective: kto"):
        TrainConfig.model_validate({"corpora": {"objective": "kto"}, "optimizer": {"label_smoothing": 0.1}})


def test_with_int8_products_the_reference_computes_as_the_policy_does() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=19, hidden_size=16, heads=2, ffn_size=32, decoder_layers=2))
    quantize(model, ["up_proj"], "int8")
    set_int8_products(model)
    add_lora(model, ["q_proj"], rank=2, alpha=4)
    ids_BT = torch.randint(19, (4, 20))
    labels_BT = ids_BT.roll(-1, 1)
    batch = Batch(None, None, ids_BT, labels_BT, None, labels_BT.numel(), 2, preference_B=torch.tensor([1, 0, 1, 0]))
    loss = PreferenceLoss("dpo", PreferenceConfig())(model.train(), batch, 1.0)
    assert loss.rewards is not None and float(loss.total) == pytest.approx(2 * math.log(2), abs=1e-6)
