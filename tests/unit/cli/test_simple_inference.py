"""`simple_inference.py`: results and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.cli import simple_inference
from onmt_llm.cli.inference import load_inference_config
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.errors import ConfigError
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


def test_an_inference_file_must_be_given_and_name_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'inference_config_file' must be given"):
        load_inference_config(None, "py")
    (tmp_path / "a.yaml").write_text("max_length: 5\n")
    with pytest.raises(ConfigError, match="'model' must name a checkpoint or a release"):
        load_inference_config(str(tmp_path / "a.yaml"), "py")


def test_mode_and_model_must_be_of_one_kind(tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.mkdir()
    for name in ("model.bin", "config.yaml", "config.json", "vocab.txt", "vocabulary.json"):
        (release / name).touch()
    file = tmp_path / "a.yaml"
    file.write_text(f"model: {release}\nsrc: None\nbeam: 1\n")
    assert load_inference_config(str(file), "ct2").job.generation.beam_size == 1
    with pytest.raises(ConfigError, match=r"With inference_mode py the model must be a checkpoint.*a\.yaml:1") as error:
        load_inference_config(str(file), "py")
    assert error.value.hint == "-inference_mode ct2, or another model"
