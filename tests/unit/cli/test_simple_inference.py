"""`simple_inference.py`: results and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from onmt_llm.cli import simple_inference
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.translate import main as translate
from onmt_llm.generate.open import open_engine


def test_answers_are_those_of_translation_in_the_order_of_the_lines(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "model", tiny.llama(), scale=0.5)
    lines, source, output = ["w1 w2", "", "w3"], tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"{line}\n" for line in lines))
    file = tmp_path / "translate.yaml"
    file.write_text(
        f"model: {model}\nmax_length: 6\nbeam_size: 2\nn_best: 2\ntransforms: [prefix]\nsrc_prefix: w9 w8\n"
    )
    loaded = load_job("onmt_llm_translate", ["-config", str(file)])
    results = simple_inference.answer_lines(open_engine(model, device="cpu"), lines, loaded)
    assert translate(["-config", str(file), "-src", str(source), "-output", str(output)]) == 0
    assert [text for texts in results["pred_answers"] for text in texts] == output.read_text().split("\n")[:-1]
    assert results["pred_answers"][1] == ["", ""] and results["score"][1] == [0.0, 0.0]
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
