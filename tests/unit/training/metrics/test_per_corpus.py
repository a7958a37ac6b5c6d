"""Likelihood per corpus of a mixture: equal to that of passes over each corpus alone, and logged to every sink."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onmt_llm.config.learning import PreferenceConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.batching.collate import PackedRow, collate, collate_rows, whole
from onmt_llm.data.batching.packing import pack_rows
from onmt_llm.data.example import IGNORED, Encoded
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.losses.objective import Objective
from onmt_llm.training.losses.preference import PreferenceLoss, sequence_log_probs

CORPORA = 4  # of which the last has no example
PACKED = {"batch_size": 8, "bucket_size": 40, "packing": "pack", "packing_length": 24}


def examples(number: int, *, seq2seq: bool = False) -> list[Encoded]:
    draw = random.Random(5)
    made = []
    for _ in range(number):
        tgt = np.array(draw.choices(range(3, 23), k=draw.randint(2, 10)), dtype=np.int32)
        labels = np.append(tgt[1:], 2).astype(np.int32)
        labels[: draw.randrange(len(labels))] = IGNORED
        src = np.array(draw.choices(range(3, 23), k=draw.randint(1, 9)), dtype=np.int32) if seq2seq else None
        made.append(Encoded(src, tgt, labels, 0, corpus=draw.choice([0, 0, 0, 1, 2])))
    return made


def build(*, seq2seq: bool = False) -> Transformer:
    shape = {"vocab_size": 23, "hidden_size": 16, "heads": 2, "ffn_size": 24, "decoder_layers": 1, "position": "rotary"}
    model = Transformer(ModelConfig.model_validate({**shape, "encoder_layers": int(seq2seq)}))
    init_weights(model, glorot=True)
    return model


def rows_of(packing: Any, given: list[Encoded]) -> list[PackedRow]:
    return [[whole(each)] for each in given] if packing == "off" else pack_rows(given, packing, 16)


def batch_of(rows: list[PackedRow], *, isolate: bool = True) -> Batch:
    return Batch.of(collate_rows(rows, pad_id=0, src_pad_id=1, isolate=isolate))


@pytest.mark.parametrize("chunk_tokens", [3, 0])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    ("packing", "seq2seq"),
    [("off", False), ("off", True), ("pack", False), ("pack", True), ("split", False), ("wrap", False)],
)
def test_sums_are_those_of_separate_passes(packing: str, seq2seq: bool, gradients: bool, chunk_tokens: int) -> None:
    model, objective = build(seq2seq=seq2seq), Objective(label_smoothing=0.2, chunk_tokens=chunk_tokens)
    rows = rows_of(packing, examples(30, seq2seq=seq2seq))
    assert packing == "off" or any(len({part.example.corpus for part in row}) > 1 for row in rows)
    with torch.set_grad_enabled(gradients):
        found = batch_loss(model, batch_of(rows), objective=objective, corpora=CORPORA)
    assert found.by_corpus_K2 is not None
    for number, (nll, tokens) in enumerate(found.by_corpus_K2.tolist()):
        own = [[part] for row in rows for part in row if part.example.corpus == number]
        alone = batch_loss(model, batch_of(own)) if own else None
        assert tokens == (alone.tokens if alone else 0)
        assert nll == pytest.approx(float(alone.nll) if alone else 0.0, rel=1e-6)
    assert found.by_corpus_K2.sum(0).tolist() == pytest.approx([float(found.nll), found.tokens], rel=1e-6)


def test_documents_that_see_each_other_have_their_own_figures_too() -> None:
    model = build()
    rows = rows_of("wrap", examples(30))
    batch = batch_of(rows, isolate=False)
    found = batch_loss(model, batch, corpora=CORPORA)
    nll_M = F.cross_entropy(model(batch.tgt_BT).flatten(0, 1), batch.labels_BT.flatten(), reduction="none").view(-1)
    wanted = [0.0] * CORPORA
    for row, nll_T in zip(rows, nll_M.view_as(batch.tgt_BT).tolist(), strict=True):
        corpora = [part.example.corpus for part in row for _ in range(part.start, part.end)]
        for corpus, nll in zip(corpora, nll_T[: len(corpora)], strict=True):
            wanted[corpus] += nll
    assert found.by_corpus_K2 is not None
    assert found.by_corpus_K2[:, 0].tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", ["orpo", "kto"])
def test_of_preferences_it_is_the_likelihood_of_the_good_answers(kind: Any) -> None:
    model, reference, draw = build(), build(), random.Random(1)
    rated = examples(12)
    for each, other in zip(rated, reversed(examples(12)), strict=True):
        each.chosen = kind == "orpo" or draw.random() < 0.6
        each.rejected = other if kind == "orpo" else None
        other.corpus = each.corpus
    preference = PreferenceLoss(kind, PreferenceConfig(), reference)
    batch = Batch.of(collate(rated, pad_id=0, src_pad_id=1))
    found = batch_loss(model, batch, objective=Objective(preference=preference), corpora=CORPORA)
    assert found.by_corpus_K2 is not None
    for number, (nll, tokens) in enumerate(found.by_corpus_K2.tolist()):
        own = [[whole(each)] for each in rated if each.corpus == number and each.chosen]
        alone = sequence_log_probs(model, batch_of(own, isolate=False)) if own else None
        assert tokens == (alone.count_B.sum() if alone else 0)
        assert nll == pytest.approx(-float(alone.total_B.detach().sum()) if alone else 0.0, rel=1e-6)


def test_nobody_asks_nothing_is_summed() -> None:
    model, batch = build(), batch_of(rows_of("off", examples(4)))
    assert batch_loss(model, batch).by_corpus_K2 is None


@pytest.fixture
def mixture(copy_task: Any) -> Any:
    """The copy task with a second corpus, of longer sentences of other words, that is drawn half as often."""
    draw = random.Random(2)
    lines = "".join(" ".join(draw.choices(["w10", "w11"], k=7)) + "\n" for _ in range(300))
    for side in ("src", "tgt"):
        (copy_task.folder / f"long.{side}").write_text(lines)
    return copy_task


def mix(task: Any, name: str, *corpora: str, **sections: Any) -> list[dict[str, Any]]:
    """Train on `corpora`, the first one with twice the weight; the rows of the reports of training."""
    places = {corpus: task.folder / corpus for corpus in corpora}
    data = {
        corpus: {"path_src": f"{place}.src", "path_tgt": f"{place}.tgt", "weight": 2 if corpus == corpora[0] else 1}
        for corpus, place in places.items()
    }
    run = {"save_model": str(task.folder / name), "seed": 7, "train_steps": 12, "save_checkpoint_steps": 6}
    run.update(sections.pop("run", {}))
    defaults = {
        "corpora": {"data": data},
        "logging": {"progress": "none", "report_every": 4},
        "optimizer": {"learning_rate": 0.01, "label_smoothing": 0.1},
        "batching": PACKED,
    }
    task.run(name, run=run, **{**defaults, **sections})
    rows = [json.loads(line) for line in (task.folder / f"{name}_metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


def of_corpora(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name.startswith(("train/", "long/"))} for row in rows]


def test_every_report_tells_each_corpus_by_its_tokens(mixture: Any) -> None:
    rows = mix(mixture, "both", "train", "long")
    assert len(rows) == 3
    for row in rows:
        tokens = [row[f"{name}/tokens"] for name in ("train", "long")]
        means = [row[f"{name}/xent"] for name in ("train", "long")]
        assert sum(tokens) == row["tokens"] and min(tokens) > 0
        assert row["xent"] == pytest.approx(np.average(means, weights=tokens), rel=1e-6)
        assert row["long/ppl"] == pytest.approx(np.exp(row["long/xent"]))
    # two words are soon guessed, twelve are not
    assert rows[-1]["long/xent"] < rows[-1]["train/xent"] - 0.2
    batching = {**PACKED, "num_workers": 2}
    assert of_corpora(mix(mixture, "workers", "train", "long", batching=batching)) == of_corpora(rows)


def test_a_run_that_goes_on_reports_what_it_would_have_reported(mixture: Any) -> None:
    rows = mix(mixture, "whole", "train", "long")
    # as if the run had been killed after its checkpoint of step 6, between two reports
    (mixture.folder / "part_metrics.jsonl").write_text((mixture.folder / "whole_metrics.jsonl").read_text())
    resumed = {"train_from": str(mixture.folder / "whole_step_6")}
    assert of_corpora(mix(mixture, "part", "train", "long", run=resumed)) == of_corpora(rows)
    state = json.loads((mixture.folder / "whole_step_6/train_state/state.json").read_text())
    assert set(state["progress"]["report"]["corpora"]) == {"train", "long"}


def test_of_one_corpus_nothing_more_is_told(mixture: Any) -> None:
    rows = mix(mixture, "one", "train")
    assert not any(of_corpora(rows))
    state = json.loads((mixture.folder / "one_step_12/train_state/state.json").read_text())
    assert state["progress"]["report"]["corpora"] == {}


def test_tensorboard_has_a_curve_of_each(mixture: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = {"progress": "none", "report_every": 4, "tensorboard": True, "tensorboard_log_dir": str(tmp_path / "events")}
    rows = mix(mixture, "seen", "train", "long", logging=log)
    (folder,) = (tmp_path / "events").iterdir()
    events = accumulator.EventAccumulator(str(folder)).Reload()
    for name in ("train/xent", "long/xent", "long/ppl", "train/tokens"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx([row[name] for row in rows])
