"""`keep_checkpoint` with `train_from: auto`: a run does not need the checkpoint that it was resumed from."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.data.transforms.subword import SubwordConfig
from onmt_llm.errors import CheckpointError
from onmt_llm.training.optim.ema import EMA
from onmt_llm.training.train import train

SAVES = 6
RESUMES = 3


@pytest.fixture
def tokeniser(copy_task: Any) -> Path:
    """A SentencePiece model of the task's text."""
    lines = (copy_task.folder / "train.src").read_text().splitlines()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=20, hard_vocab_limit=False, minloglevel=2
    )
    file: Path = copy_task.folder / "tokeniser.model"
    file.write_bytes(model.getvalue())
    return file


def go(task: Any, tokeniser: Path, name: str, steps: int, *, save_async: bool, **run: Any) -> None:
    """Train a language model to `steps`, with a checkpoint after each, from where it is."""
    lora = {"lora_layers": ["q_proj"]} if run.get("init_from") else {}
    config = task.config(
        corpora={
            "data": {"train": {"path_src": str(task.folder / "train.src")}},
            "transforms": ["sentencepiece"],
        },
        vocabulary={"src_vocab": None, "share_vocab": False},
        architecture={"encoder_layers": 0},
        batching={"batch_size": 4, "bucket_size": 16},
        lora=lora,
        safety={"save_async": save_async},
        run={
            "model_task": "lm",
            "save_model": str(task.folder / name / "m"),
            "train_from": "auto",
            "seed": 7,
            "train_steps": steps,
            "save_checkpoint_steps": 1,
            **run,
        },
    )
    options = {"subword": SubwordConfig(src_subword_model=str(tokeniser))}
    data = config.corpora.model_copy(update={"transform_options": options})
    assert train(config.model_copy(update={"corpora": data})).step == steps


EVERY_CASE = list(itertools.product([1, 2, 3], ["full", "lora"], ["background", "waiting"]))
QUICK = {(1, "full", "background"), (2, "lora", "background"), (3, "full", "waiting")}


@pytest.mark.parametrize(
    ("keep", "kind", "saving"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in EVERY_CASE],
)
def test_a_run_that_is_resumed_three_times_ends_as_if_it_had_never_stopped(
    copy_task: Any, tokeniser: Path, keep: int, kind: str, saving: str
) -> None:
    base = {}
    lora, save_async = kind == "lora", saving == "background"
    if lora:
        go(copy_task, tokeniser, "base", 1, save_async=False)
        base = {"init_from": str(copy_task.folder / "base/m_step_1")}
    steps = SAVES * (RESUMES + 1)
    go(copy_task, tokeniser, "whole", steps, save_async=save_async, keep_checkpoint=-1, **base)
    for part in range(1, RESUMES + 2):
        go(copy_task, tokeniser, "part", SAVES * part, save_async=save_async, keep_checkpoint=keep, **base)
    kept = [copy_task.folder / f"part/m_step_{step}" for step in range(steps - keep + 1, steps + 1)]
    assert sorted(copy_task.folder.glob("part/m_step_*")) == sorted(kept)
    for checkpoint in kept:
        whole = copy_task.folder / "whole" / checkpoint.name
        weights = "adapter.safetensors" if lora else "model.safetensors"
        for file in (weights, "train_state/optimizer.safetensors", "tokeniser.model", "vocab.txt", "config.yaml"):
            assert (checkpoint / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_name_that_is_taken_is_told_before_the_first_step(copy_task: Any) -> None:
    (copy_task.folder / "toy_step_3").write_text("notes")
    with pytest.raises(CheckpointError, match=r"toy_step_3, but that is not a checkpoint"):
        copy_task.run()
    assert (copy_task.folder / "toy_step_3").read_text() == "notes"
    assert not (copy_task.folder / "toy_metrics.jsonl").exists()


def test_an_adapter_does_not_replace_its_base(copy_task: Any) -> None:
    copy_task.run()
    base = copy_task.folder / "toy_step_3"
    run = {"train_from": str(base), "save_model": str(copy_task.folder / "toy"), "reset_optim": "all"}
    with pytest.raises(CheckpointError, match=r"starts from .*toy_step_3, but would write"):
        copy_task.run(run=run, lora={"lora_layers": ["q_proj"]})
    copy_task.run(run={**run, "save_checkpoint_steps": 2, "train_steps": 4}, lora={"lora_layers": ["q_proj"]})
    assert not Checkpoint.open(base).is_adapter and Checkpoint.open(copy_task.folder / "toy_step_4").is_adapter


def test_a_folder_that_is_removed_in_a_run_is_made_anew(
    copy_task: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    settings = {"save_model": str(copy_task.folder / "run/m"), "train_steps": 12, "save_checkpoint_steps": 3}
    sections = {
        "logging": {"progress": "none", "report_every": 1},
        "optimizer": {"learning_rate": 0.01, "average_decay": 0.1},
        "safety": {"save_async": False},
    }
    copy_task.run(run={**settings, "save_model": str(copy_task.folder / "whole/m")}, **sections)
    update = EMA.update

    def removed_after_seven(self: EMA, step: int) -> None:
        update(self, step)
        if step == 7:
            shutil.rmtree(copy_task.folder / "run")

    monkeypatch.setattr(EMA, "update", removed_after_seven)
    assert copy_task.run(run=settings, **sections).status == "finished"
    assert sorted(path.name for path in (copy_task.folder / "run").glob("m_step_*[0-9]")) == ["m_step_12", "m_step_9"]
    rows = [json.loads(line) for line in (copy_task.folder / "run/m_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 13))
    said = [record.message for record in caplog.records if "was removed during the run" in record.message]
    assert sorted(Path(message.split()[0]).name for message in said) == [".m.lock", "m_metrics.jsonl"]
    last = [copy_task.folder / name / "m_step_12/model.safetensors" for name in ("run", "whole")]
    assert last[0].read_bytes() == last[1].read_bytes()
    assert not [path for path in (copy_task.folder / "run").iterdir() if path.name.startswith(".")]
