"""Scores of files beside the commands of sacrebleu and rouge-score: the same figures, digit for digit."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.cli.eval import main as evaluate

pytest.importorskip("sacrebleu")
WORDS = [
    "the",
    "a",
    "cat",
    "sat,",
    "runs.",
    "quickly",
    "over",
    "brown",
    "fox",
    "12",
    "3.5",
    "house-boat",
    "don't",
    "Émile",
]
LINES = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References, and two systems with different shares of wrong words."""
    folder, rng = tmp_path_factory.mktemp("scores"), random.Random(3)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(3, 25))) for _ in range(LINES)]
    write(folder / "ref", references)
    for name, share in (("one", 0.2), ("two", 0.25)):
        write(folder / name, [" ".join(noisy(line.split(), share, rng)) for line in references])
    return folder


def noisy(words: Sequence[str], share: float, rng: random.Random) -> list[str]:
    return [rng.choice(WORDS) if rng.random() < share else word for word in words if rng.random() > share / 4]


def write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def ours(folder: Path, *argv: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Our scores by system and metric."""
    output = folder / "scores.json"
    systems = ["-hyp", str(folder / "one"), str(folder / "two"), "-tgt", str(folder / "ref")]
    assert evaluate(["score", *systems, "-output", str(output), *argv]) == 0
    return {(Path(row["system"]).name, row["metric"]): row for row in json.loads(output.read_text())}


def sacrebleu(folder: Path, system: str) -> Any:
    words = [str(folder / "ref"), "-i", str(folder / system), "-m", "bleu", "chrf", "ter", "-w", "6", "-f", "json"]
    return json.loads(subprocess.check_output([sys.executable, "-m", "sacrebleu", *words], text=True))


@pytest.mark.slow
def test_scores_and_signatures_are_those_of_sacrebleus_command(folder: Path) -> None:
    found = ours(folder)
    for system in ("one", "two"):
        theirs = sacrebleu(folder, system)
        for metric, wanted in zip(("BLEU", "CHRF", "TER"), theirs, strict=True):
            row = found[system, metric]
            assert round(row["score"], 6) == wanted["score"] and row["signature"] == wanted["signature"]


@pytest.mark.slow
def test_confidence_and_paired_tests_are_those_of_sacrebleus_command(folder: Path) -> None:
    found = ours(folder, "-resamples", "300")
    words = ["-m", "bleu", "chrf", "ter", "-w", "4", "-f", "text", "--paired-bs", "--paired-bs-n", "300"]
    words = [str(folder / "ref"), "-i", str(folder / "one"), str(folder / "two"), *words]
    table = subprocess.check_output([sys.executable, "-m", "sacrebleu", *words], text=True)
    theirs = re.findall(r"([\d.]+) \(([\d.]+) ± ([\d.]+)\)", table)
    shown = [(f"{row['score']:.4f}", f"{row['mean']:.4f}", f"{row['interval']:.4f}") for row in found.values()]
    assert len(theirs) == 6 and sorted(theirs) == sorted(shown)
    wanted = re.findall(r"p = ([\d.]+)", table)
    assert len(wanted) == 3
    assert wanted == [f"{found['two', metric]['p_value']:.4f}" for metric in ("BLEU", "CHRF", "TER")]
    assert not any("p_value" in row for (system, _), row in found.items() if system == "one")


@pytest.mark.slow
def test_rouge_is_that_of_rouge_scores_command(folder: Path) -> None:
    pytest.importorskip("rouge_score")
    names = {"ROUGE1": "rouge1", "ROUGE2": "rouge2", "ROUGEL": "rougeL", "ROUGELSUM": "rougeLsum"}
    found = ours(folder, "-metrics", *names)
    for system in ("one", "two"):
        flags = {"target": folder / "ref", "prediction": folder / system}
        words = [f"--{name}_filepattern={path}" for name, path in flags.items()]
        words += ["--noaggregate", f"--rouge_types={','.join(names.values())}"]
        output = folder / f"{system}.csv"
        subprocess.run([sys.executable, "-m", "rouge_score.rouge", *words, f"--output_filename={output}"], check=True)
        rows = list(csv.DictReader(output.open()))
        assert len(rows) == LINES
        for metric, kind in names.items():
            mean = sum(float(row[f"{kind}-F"]) for row in rows) / LINES
            assert found[system, metric]["score"] == pytest.approx(100 * mean, abs=1e-4)
