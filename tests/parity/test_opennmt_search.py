"""The n-best lists and scores of OpenNMT-py 3.5.1, from a model that it trained (tests/data/opennmt_beam)."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.convert import convert
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.alignment import pharaoh, read_phrase_table, replace_unknown
from onmt_llm.generate.engine import Engine, Hypothesis
from onmt_llm.generate.open import open_engine

DATA = Path(__file__).parent.parent / "data" / "opennmt_beam"
CASES = json.loads((DATA / "expected.json").read_text())
TABLE = "w20|||twenty\nw19|||nineteen\n"


def open_converted(folder: Path, scratch: Path, models: int = 1) -> Engine:
    names = ["model", "model_1"][:models]
    for name in names:
        if not (scratch / name).exists():
            convert(folder / f"{name}.pt", scratch / name)
    return open_engine([scratch / name for name in names], device="cpu")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("opennmt")
    (directory / "table.txt").write_text(TABLE)
    return directory


def answer(engine: Engine, case: dict[str, Any], table: Path, batch_size: int) -> list[list[Hypothesis]]:
    options = dict(case["options"])
    mapping = read_phrase_table(table) if options.pop("phrase_table", None) else {}
    size = len(case["sources"])
    prefixes = [[f"v{i % 9}", f"v{i % 5}"] for i in range(size)] if options.pop("tgt_file_prefix", False) else None
    trained = {"alignment_layer": -1, "alignment_heads": 2} if options.get("report_align") else {}
    prompts = [engine.codec.encode(source) for source in case["sources"]]
    config = GenerationConfig(**{"max_length": 250, **options, **trained})
    found = engine.generate(prompts, config, batch_size=batch_size, prefixes=prefixes)
    return [
        [
            replace_unknown(hypothesis, prompt, mapping, engine.codec) if config.replace_unk else hypothesis
            for hypothesis in best
        ]
        for prompt, best in zip(prompts, found, strict=True)
    ]


def hold(engine: Engine, case: dict[str, Any], table: Path, batch_size: int) -> None:
    for best, expected in zip(answer(engine, case, table, batch_size), case["answers"], strict=True):
        for hypothesis, (text, score) in zip(best, expected, strict=True):
            if score == -math.inf:
                break  # no attention at all is an infinite penalty there, and a large one here
            said = " ".join(hypothesis.tokens)  # OpenNMT-py writes <blank>, which is no part of our text
            if hypothesis.alignment is not None and case["options"].get("report_align"):
                assert f"{said} ||| {pharaoh(hypothesis.alignment)}" == text
            else:
                # OpenNMT-py copies a source word that is not in its source vocabulary as <unk>, we copy the word.
                assert said.replace("w21", "<unk>") == text
            # Logarithms of almost no attention make the coverage penalty `wu` less exact.
            close = 1e-3 if case["options"].get("coverage_penalty") == "wu" else 1e-4
            assert hypothesis.score == pytest.approx(score, abs=close)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize(
    "case", CASES, ids=[" ".join(f"{k}={v}" for k, v in case["options"].items()) for case in CASES]
)
def test_lists_and_scores_are_those_of_opennmt(case: dict[str, Any], batch_size: int, scratch: Path) -> None:
    hold(open_converted(DATA, scratch), case, scratch / "table.txt", batch_size)


def test_the_cases_are_worth_it() -> None:
    assert [len(case["answers"]) for case in CASES[:2]] == [50, 50]
    lists = {json.dumps([[text for text, _ in best] for best in case["answers"][-12:]]) for case in CASES}
    assert len(lists) >= len(CASES) - 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_made_anew_answers_alike_too(tmp_path: Path) -> None:
    python = os.environ.get("ONMT_PY_PYTHON")
    if not python:
        pytest.skip("ONMT_PY_PYTHON must name the interpreter of an OpenNMT-py 3.5.1, but is not set")
    env = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run([python, DATA / "make.py", tmp_path], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "table.txt").write_text(TABLE)
    for case in json.loads((tmp_path / "expected.json").read_text()):
        engine = open_converted(tmp_path, tmp_path / "ours", case.get("models", 1))
        hold(engine, case, tmp_path / "table.txt", 8)
