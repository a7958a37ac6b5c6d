"""The inference configuration that the chat and `simple_inference` share."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from onmt_llm.cli.inference import load_inference_config, open_configured_engine
from onmt_llm.errors import ConfigError


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


def test_the_engine_is_the_one_that_the_configuration_describes(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "tiny", tiny.llama())
    file = tmp_path / "a.yaml"
    file.write_text(f"model: {model}\nprecision: bf16\ndevice: cpu\n")
    engine = open_configured_engine(load_inference_config(str(file), "py"))
    assert {str(parameter.dtype) for parameter in engine.model.parameters()} == {"torch.bfloat16"}  # type: ignore[attr-defined]
