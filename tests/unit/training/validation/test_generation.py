"""Validation by generated translations: metrics, files, tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine
from onmt_llm.text.templates.builtin import get_template
from onmt_llm.training.result import TrainResult

sacrebleu = pytest.importorskip("sacrebleu")

METRICS = ["BLEU", "chrF", "TER"]
LEARN = {"learning_rate": 0.01, "warmup_steps": 20, "decay_method": "cosine", "adam_beta2": 0.98}


def learn(copy_task: Any, steps: int, **sections: Any) -> TrainResult:
    run = {"train_steps": steps, "valid_steps": steps, "save_model": str(copy_task.folder / "toy"), "seed": 7}
    validation = {"valid_metrics": METRICS, "dump_preds": str(copy_task.folder / "preds"), "valid_max_length": 20}
    settings: dict[str, Any] = {
        "run": {**run, "param_init_glorot": True, "save_checkpoint_steps": steps},
        "validation": {**validation, **sections.pop("validation", {})},
        "optimizer": LEARN,
        "batching": {"batch_size": 64, "bucket_size": 512},
        **sections,
    }
    return copy_task.run(**settings)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def of_files(folder: Path, step: int) -> dict[str, float]:
    preds, refs = lines(folder / f"preds.valid_step_{step}.txt"), [lines(folder / "refs.valid.txt")]
    return {
        "BLEU": sacrebleu.corpus_bleu(preds, refs).score,
        "CHRF": sacrebleu.corpus_chrf(preds, refs).score,
        "TER": sacrebleu.corpus_ter(preds, refs).score,
    }


@pytest.mark.parametrize("beam", [1, 3])
def test_scores_are_those_of_sacrebleu_on_the_dumped_predictions(copy_task: Any, beam: int) -> None:
    learn(copy_task, 60, validation={"valid_beam_size": beam, "scoring_debug": True})
    row = copy_task.validations()[-1]
    assert {name: row[name] for name in ("BLEU", "CHRF", "TER")} == of_files(copy_task.folder / "preds", 60)
    assert row["CHRF"] > 0
    assert lines(copy_task.folder / "preds/refs.valid.txt") == lines(copy_task.folder / "valid.tgt")
    engine = open_engine(copy_task.folder / "toy_step_60")
    prompts = [engine.codec.encode(line) for line in lines(copy_task.folder / "valid.src")]
    answers = engine.generate(prompts, GenerationConfig(beam_size=beam, max_length=20))
    assert [best[0].text for best in answers] == lines(copy_task.folder / "preds/preds.valid_step_60.txt")
    blocks = (copy_task.folder / "preds/debug.valid_step_60.txt").read_text().split("\n\n")
    source, gold = lines(copy_task.folder / "valid.src")[0], lines(copy_task.folder / "valid.tgt")[0]
    said = lines(copy_task.folder / "preds/preds.valid_step_60.txt")[0]
    assert blocks[0] == f"SOURCE: {source}\nREF: {gold}\nPRED: {said}"


def test_a_language_model_is_asked_its_prompts(copy_task: Any) -> None:
    architecture = {
        "encoder_layers": 0,
        "decoder_layers": 2,
        "hidden_size": 32,
        "heads": 4,
        "ffn_size": 64,
        "position": "rotary",
    }
    data = {"data": copy_task.corpora, "zero_out_prompt_loss": True}
    learn(copy_task, 160, architecture=architecture, corpora=data)
    row = copy_task.validations()[-1]
    assert {name: row[name] for name in ("BLEU", "CHRF", "TER")} == of_files(copy_task.folder / "preds", 160)
    assert lines(copy_task.folder / "preds/refs.valid.txt") == lines(copy_task.folder / "valid.tgt")
    assert row["CHRF"] > 25


def test_conversations_are_asked_for_their_last_answer(copy_task: Any) -> None:
    turns = [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w2 w1"},
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w3 w3"},
    ]
    path = copy_task.folder / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"text": "w1 w2 w3"}) + "\n")
    architecture = {"encoder_layers": 0, "decoder_layers": 1, "hidden_size": 16, "heads": 2, "ffn_size": 24}
    data = {"train": copy_task.corpora["train"], "valid": {"path_jsonl": str(path)}}
    vocabulary = copy_task.folder / "words.txt"
    # the words of the template, for a vocabulary by spaces
    layout = "".join(segment.text or "" for segment in get_template("alpaca").render([], generation_prompt=True))
    vocabulary.write_text("".join(f"{word}\n" for word in dict.fromkeys(["w1", "w2", "w3", *layout.split()])))
    learn(
        copy_task,
        2,
        architecture={**architecture, "position": "rotary"},
        corpora={"data": data},
        vocabulary={"src_vocab": str(vocabulary)},
    )
    assert lines(copy_task.folder / "preds/refs.valid.txt") == ["w3 w3"]


def test_examples_that_a_filter_drops_are_not_asked(copy_task: Any) -> None:
    with open(copy_task.folder / "valid.src", "a") as src, open(copy_task.folder / "valid.tgt", "a") as tgt:
        src.write("w1 " * 300 + "\n")
        tgt.write("w1\n")
    learn(copy_task, 2, corpora={"data": copy_task.corpora, "transforms": ["filtertoolong"]})
    assert lines(copy_task.folder / "preds/refs.valid.txt") == lines(copy_task.folder / "valid.tgt")[:-1]


def test_training_goes_on_as_if_nothing_had_been_asked(copy_task: Any) -> None:
    for name, validation in (("asked", {"valid_metrics": METRICS, "valid_max_length": 5}), ("silent", {})):
        run = {"save_model": str(copy_task.folder / name), "seed": 7, "train_steps": 4, "valid_steps": 1}
        copy_task.run(name, run={**run, "save_checkpoint_steps": 4, "dropout": [0.1]}, validation=validation)
    asked, silent = (copy_task.tensors(f"{name}_step_4") for name in ("asked", "silent"))
    assert all(torch.equal(asked[name], silent[name]) for name in asked)
