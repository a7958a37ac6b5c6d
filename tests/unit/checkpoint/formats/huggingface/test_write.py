"""Exports to Hugging Face: everything is checked before the first weight is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.checkpoint.formats.huggingface import write
from onmt_llm.errors import UnsupportedError
from tests import tiny


def test_a_tokeniser_is_refused_before_weights_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny.write_checkpoint(tmp_path / "own", tiny.llama())
    monkeypatch.delattr(write, "ShardedWriter")
    with pytest.raises(UnsupportedError, match="this one is 'whitespace'"):
        write.export_hf(own, tmp_path / "there")
    assert [file.name for file in tmp_path.iterdir()] == ["own"]
