"""`onmt_llm_eval run` beside a training that is killed and resumed: each checkpoint on each corpus exactly once."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.cli.eval import main as evaluate
from onmt_llm.cli.plot import main as plot
from onmt_llm.generate.scorers import SCORERS
from onmt_llm.training.checkpoint_validation import locked
from onmt_llm.training.run_folder import checkpoints

WORDS = [f"w{i}" for i in range(12)]
CORPORA = ("valid_news", "valid_talks")
STEPS, SAVE_EVERY = 60, 5


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The YAML file of a run."""
    rng = random.Random(1)
    for name, count in (("train", 500), *((corpus, 30) for corpus in CORPORA)):
        lines = "".join(" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) + "\n" for _ in range(count))
        (tmp_path / name).write_text(lines)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    options: dict[str, Any] = {
        "data": {name: {"path_src": str(tmp_path / name)} for name in ("train", *CORPORA)},
        "src_vocab": str(tmp_path / "vocab.txt"),
        "save_model": str(tmp_path / "m"),
        **{"encoder_layers": 0, "decoder_layers": 1, "hidden_size": 16, "heads": 2, "ffn_size": 24},
        **{"batch_size": 8, "bucket_size": 64, "dropout": 0.1, "learning_rate": 0.01, "seed": 3},
        **{"train_steps": STEPS, "save_checkpoint_steps": SAVE_EVERY, "valid_steps": SAVE_EVERY},
        **{"train_from": "auto", "device": "cpu", "threads": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    return tmp_path / "run.yaml"


def started(module: str, *argv: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", f"onmt_llm.cli.{module}", *argv]
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_pair_is_measured_once_beside_a_run_that_is_killed(run: Path) -> None:
    output, watch = run.with_name("results.csv"), ["-config", str(run), "-watch", "1"]
    words = ["run", *watch, "-output", str(output)]
    watcher, looked = started("eval", *words), 0
    for kill_after in (3, 6, 9, None):
        training = started("train", "-config", str(run))
        while training.poll() is None:
            rows = rows_of(output) if output.exists() else []  # it can be read at any time
            looked += bool(rows)
            assert all(float(row["ppl"]) > 1 and row.keys() >= {"step", "corpus", "loss", "tokens"} for row in rows)
            if kill_after is not None and len(checkpoints(str(run.with_name("m")))) >= kill_after:
                training.send_signal(signal.SIGKILL)
                watcher.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        training.wait()
        if kill_after is not None:
            watcher.wait()
            watcher = started("eval", *words)
    assert watcher.wait(timeout=300) == 0
    assert looked
    found = [(int(row["step"]), row["corpus"]) for row in rows_of(output)]
    assert found == [(step, corpus) for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY) for corpus in CORPORA]
    before = output.read_bytes()
    assert evaluate(["run", "-config", str(run), "-output", str(output)]) == 0
    assert output.read_bytes() == before, "nothing is measured again"
    with locked(output):
        assert evaluate(words) == 4, "another process writes the file"
    compare_with_validation(run, output)
    assert plot([str(output), "-output", str(run.with_name("plot.png"))]) == 0


def compare_with_validation(run: Path, output: Path) -> None:
    """The run has measured the same while it trained."""
    lines = map(json.loads, run.with_name("m_metrics.jsonl").read_text().splitlines())
    validations = {row["step"]: row for row in lines if row["split"] == "valid"}
    for row in rows_of(output):
        name = f"{row['corpus']}/ppl"
        assert float(row["ppl"]) == pytest.approx(validations[int(row["step"])][name], rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_watch_ends_with_a_run_that_stops_early(run: Path) -> None:
    output = run.with_name("results.csv")
    watcher = started("eval", "run", "-config", str(run), "-watch", "1", "-output", str(output))
    stop = ["-early_stopping", "1", "-learning_rate", "5", "-optim", "sgd", "-train_steps", "1000"]
    assert started("train", "-config", str(run), *stop).wait(timeout=300) == 0
    assert watcher.wait(timeout=300) == 0
    assert {int(row["step"]) for row in rows_of(output)} == checkpoints(str(run.with_name("m"))).keys() != {1000}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_metrics_of_answers_go_on_over_resumes_and_are_those_of_one_process(run: Path) -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    options = yaml.safe_load(run.read_text())
    del options["save_model"], options["train_from"], options["data"]["valid_talks"]
    pairs = {
        name: {"path_src": path["path_src"], "path_tgt": path["path_src"]} for name, path in options["data"].items()
    }
    metrics = SCORERS.names()
    update = {"train_steps": 40, "valid_steps": 10, "save_checkpoint_steps": 10, "valid_metrics": metrics}
    update |= {
        "data": pairs,
        "zero_out_prompt_loss": True,
        "model_task": "lm",
        "dropout": 0.0,
        "bucket_size": 16,
        "valid_max_length": 8,
    }
    run.write_text(yaml.safe_dump({**options, **update}))

    def trained(name: str, *argv: str, ranks: int = 1) -> list[dict[str, Any]]:
        """The validations of a run."""
        words = [sys.executable, "-m"]
        if ranks > 1:
            words += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
        prefix = run.with_name(name)
        words += ["onmt_llm.cli.train", "-config", str(run), "-save_model", str(prefix), "-train_from", "auto", *argv]
        subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        rows = map(json.loads, prefix.with_name(f"{name}_metrics.jsonl").read_text().splitlines())
        return [{key: row[key] for key in ("step", "ppl", *metrics)} for row in rows if row["split"] == "valid"]

    whole = trained("whole", "-accum_count", "2")
    assert [row["step"] for row in whole] == [10, 20, 30, 40] and any(row["ROUGE1"] > 0 for row in whole)
    trained("parts", "-accum_count", "2", "-train_steps", "20")
    assert trained("parts", "-accum_count", "2") == whole
    # the same weights, validated by one process and by two
    same = ["-init_from", str(run.with_name("whole_step_40")), "-train_steps", "1", "-valid_steps", "1"]
    same += ["-learning_rate", "1e-30"]
    alone, ranks = trained("alone", *same), trained("ranks", *same, ranks=2)
    assert ranks == [pytest.approx(row, rel=1e-6) for row in alone]
