"""Files of OpenNMT-py that replace others."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.checkpoint.formats.opennmt import write
from onmt_llm.errors import CheckpointError


def test_a_model_stays_whole_if_another_cannot_replace_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *"abcd"]
    config = tiny.seq2seq(vocab_size=len(tokens))
    model = tiny.write_checkpoint(tmp_path / "model", config, tokens, specials={"pad": "<pad>"})
    file = write.export_opennmt(model, tmp_path / "there", format="safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("there*")}
    assert len(before) > 1

    def full(content: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(write, "save_torch", full)
        with pytest.raises(CheckpointError):
            write.export_opennmt(model, file, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("there*")} == before
    write.export_opennmt(model, file, overwrite=True)
    assert not list(tmp_path.glob("there*.safetensors"))
