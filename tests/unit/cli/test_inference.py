"""The inference configuration that the chat and `simple_inference` share."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from onmt_llm.cli.inference import load_inference_config, open_configured_engine
from onmt_llm.config.chat import ChatModelConfig, Mode
from onmt_llm.errors import ConfigError


def options(file: Path | None = None, mode: Mode | None = None, model: Path | None = None) -> ChatModelConfig:
    files = [None if path is None else str(path) for path in (file, model)]
    return ChatModelConfig(inference_config_file=files[0], inference_mode=mode, model=files[1])


def test_a_model_or_an_inference_file_that_names_one_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'model' or 'inference_config_file' must be given"):
        load_inference_config(options())
    (tmp_path / "a.yaml").write_text("max_length: 5\n")
    with pytest.raises(ConfigError, match="'model' must name a checkpoint or a release"):
        load_inference_config(options(tmp_path / "a.yaml"))


def test_a_model_needs_no_file_and_wins_over_that_of_the_file(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "tiny", tiny.llama())
    assert load_inference_config(options(model=model)).job.inference.model == [str(model)]
    (tmp_path / "a.yaml").write_text("model: other\nbeam_size: 3\n")
    job = load_inference_config(options(tmp_path / "a.yaml", model=model)).job
    assert job.inference.model == [str(model)] and job.generation.beam_size == 3


def test_mode_and_model_must_be_of_one_kind(tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.mkdir()
    for name in ("model.bin", "config.yaml", "config.json", "vocab.txt", "vocabulary.json"):
        (release / name).touch()
    file = tmp_path / "a.yaml"
    file.write_text(f"model: {release}\nsrc: None\nbeam: 1\n")
    assert load_inference_config(options(file, "ct2")).job.generation.beam_size == 1
    with pytest.raises(ConfigError, match=r"With inference_mode py the model must be a checkpoint.*a\.yaml:1") as error:
        load_inference_config(options(file, "py"))
    assert error.value.hint == "-inference_mode ct2, or another model"


def test_the_engine_is_the_one_that_the_configuration_describes(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "tiny", tiny.llama())
    file = tmp_path / "a.yaml"
    for prefix_cache in (0, 8):
        file.write_text(f"model: {model}\nprefix_cache: {prefix_cache}\ndevice: cpu\n")
        engine = open_configured_engine(load_inference_config(options(file, "py")))
        assert (engine.prefixes is not None) == (prefix_cache > 0)  # type: ignore[attr-defined]
