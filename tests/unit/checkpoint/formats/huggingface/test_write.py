"""Exports to Hugging Face: everything is checked before the first weight is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface import write
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import UnsupportedError
from tests import tiny


def test_a_tokeniser_is_refused_before_weights_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny.write_checkpoint(tmp_path / "own", tiny.llama())
    monkeypatch.delattr(write, "ShardedWriter")
    with pytest.raises(UnsupportedError, match="this one is 'whitespace'"):
        write.export_hf(own, tmp_path / "there")
    assert [file.name for file in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.9}, {"repetition_penalty": 1.2}],
    ids=["greedy", "sampling", "penalty"],
)
def test_sampling_defaults_go_there_and_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    generation = pytest.importorskip("transformers").GenerationConfig
    first = write.export_hf(tiny.write_chat_model(tmp_path / "own"), tmp_path / "there")
    given = {**json.loads((first / "generation_config.json").read_text()), **settings}
    (first / "generation_config.json").write_text(json.dumps(given))
    back = convert(first, tmp_path / "back")
    assert Checkpoint.open(back).config.sampling.model_dump(exclude_defaults=True) == settings
    again = write.export_hf(back, tmp_path / "again")
    assert generation.from_pretrained(again).to_dict() == generation.from_pretrained(first).to_dict()


def test_impossible_sampling_defaults_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    first = write.export_hf(tiny.write_chat_model(tmp_path / "own"), tmp_path / "there")
    (first / "generation_config.json").write_text('{"do_sample": true, "temperature": "warm"}')
    assert not Checkpoint.open(convert(first, tmp_path / "back")).config.sampling.do_sample
    assert "settings of sampling" in caplog.text
