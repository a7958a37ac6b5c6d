"""`simple_inference.py`: results and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.cli import simple_inference
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.generate.engine import Hypothesis


class EchoEngine:
    """Answers with its prompt."""

    class codec:
        @staticmethod
        def encode(text: str) -> list[str]:
            return text.split(" ")

    def generate(self, prompts: Sequence[Sequence[str]], options: GenerationConfig, **_: Any) -> list[list[Hypothesis]]:
        return [
            [Hypothesis(list(p), " ".join(p), -float(n), "stop") for n in range(options.n_best)] if p
            else [Hypothesis([], "", 0.0, "stop") for _ in range(options.n_best)]
            for p in prompts
        ]  # fmt: skip


def test_answers_keep_order_line_breaks_and_empty_lines() -> None:
    config = TranslateConfig(generation=GenerationConfig(beam_size=2, n_best=2))
    results = simple_inference.answer_lines(EchoEngine(), ["b｟newline｠c", "", "a"], config)  # type: ignore[arg-type]
    assert results["pred_answers"] == [["b\nc", "b\nc"], ["", ""], ["a", "a"]]
    assert results["score"] == [[0.0, -1.0], [0.0, 0.0], [0.0, -1.0]]
    assert results["duration"] >= 0


def test_the_output_is_named_after_the_model_and_the_mode() -> None:
    assert simple_inference.output_file("out", "a/b/model.concat.pt", "py") == Path(
        "out/outputs_model.concat.pt_py.json"
    )
    assert simple_inference.output_file("out", "a/release/", "ct2") == Path("out/outputs_release_ct2.json")


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert simple_inference.main(["-inference_mode", "py", "-input_file", "x"]) == 2
    assert "'output_directory' must be given" in capsys.readouterr().err
    assert simple_inference.main(["-input_flie", "x"]) == 2
    assert "did you mean '-input_file'?" in capsys.readouterr().err


def test_a_file_of_prompts_is_answered_in_json(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "tiny", tiny.llama())
    config, prompts = tmp_path / "py.yaml", tiny.write_vocab(tmp_path / "prompts", ["w1 w2", "", "w3"])
    config.write_text(f"model: {model}\nmax_length: 4\ndevice: cpu\n")
    words = ["-input_file", str(prompts), "-inference_config_file", str(config), "-inference_mode", "py"]
    assert simple_inference.main([*words, "-output_directory", str(tmp_path / "new")]) == 0
    results = json.loads((tmp_path / "new/outputs_tiny_py.json").read_text())
    assert [len(answers) for answers in results["pred_answers"]] == [1, 1, 1] and results["pred_answers"][1] == [""]
    assert results["duration"] > 0 and len(results["score"]) == 3
