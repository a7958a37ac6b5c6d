"""`provenance.json`: what checkpoints record of the runs that they come from, and what of it survives."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.merge import merge
from onmt_llm.checkpoint.provenance import PROVENANCE_FILE, CorpusFile, TrainingRun, read_provenance
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.checksums import sha256_of_sample
from onmt_llm.cli.checkpoint import main as checkpoint_command
from onmt_llm.releasing import release

ROOT = Path(__file__).parents[4]
DECODER = {"encoder_layers": 0, "position": "rotary", "norm": "rmsnorm"}


def runs(directory: Path | str) -> list[TrainingRun]:
    return read_provenance(Path(directory)).runs


def train(task: Any, name: str, **sections: Any) -> Path:
    return Path(str(task.run(name, architecture=DECODER, **sections).checkpoint))


def test_a_checkpoint_names_corpora_settings_and_scores_but_no_paths(copy_task: Any) -> None:
    checkpoint = train(copy_task, "a", run={"valid_steps": 3})
    (run,) = runs(checkpoint)
    assert (run.base, run.step, run.validated) == ("", 6, 6)
    assert run.settings["learning_rate"] == 0.01 and run.settings["seed"] == 7 and "lora_rank" not in run.settings
    (validation,) = (row for row in copy_task.validations("a") if row["step"] == 6)
    assert run.scores["ppl"] == validation["ppl"]
    (corpus,) = run.corpora
    assert (corpus.name, corpus.weight, [file.name for file in corpus.files]) == (
        "train",
        1,
        ["train.src", "train.tgt"],
    )
    assert corpus.files[0].sample == sha256_of_sample(copy_task.folder / "train.src")
    assert str(copy_task.folder) not in (checkpoint / PROVENANCE_FILE).read_text()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_a_checkpoint_names_the_commit(copy_task: Any) -> None:
    (run,) = runs(train(copy_task, "a"))
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.versions["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_a_resumed_run_is_one_run(copy_task: Any) -> None:
    settings = {"train_from": "auto", "train_steps": 3}
    train(copy_task, "a", run=settings)
    (run,) = runs(train(copy_task, "a", run={**settings, "train_steps": 6}))
    assert (run.base, run.step) == ("", 6)


def test_fine_tuning_adds_a_run_that_survives_merging_and_releasing(
    copy_task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = train(copy_task, "base")
    lora = {"lora_layers": ["q_proj"], "lora_rank": 2, "lora_alpha": 4.0}
    adapter = train(copy_task, "adapter", lora=lora, run={"train_from": str(base)})
    first, second = runs(adapter)
    assert [first] == runs(base)
    assert (second.base, second.base_fingerprint) == (base.name, Checkpoint.open(base).fingerprint)
    assert (second.settings["lora_rank"], second.settings["lora_layers"]) == (2, ["q_proj"])
    merged = merge(base, adapter, tmp_path / "merged")
    release(merged, tmp_path / "ct2", verify="off")
    release(merged, tmp_path / "safetensors")
    for place in (merged, tmp_path / "ct2", tmp_path / "safetensors"):
        assert runs(place) == [first, second]
    assert checkpoint_command(["info", "-model", str(merged)]) == 0
    said = capsys.readouterr().out
    assert re.findall("^trained +(.+)$", said, flags=re.M) == [
        "6 steps from new weights on train",
        f"6 steps from {base.name} on train",
    ]


def test_files_and_scores_may_be_large() -> None:
    assert CorpusFile(name="web.jsonl", bytes=2**42, sample="").bytes == 2**42
    assert TrainingRun(scores={"ppl": 1e30}).scores == {"ppl": 1e30}
