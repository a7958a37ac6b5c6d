"""Reading Hugging Face folders: shards, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.checkpoint.formats.huggingface.read import open_weights
from onmt_llm.errors import CheckpointError


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "[]", '{"weight_map": 3}', "\x00"])
def test_an_index_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name} must be JSON with a `weight_map`"):
        open_weights(tmp_path)
