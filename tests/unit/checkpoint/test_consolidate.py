"""A checkpoint in parts is read like a whole one, and `consolidate` makes it whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from onmt_llm.checkpoint.directory import file_record, find_damage
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.checkpoint.files.shards import TensorPart, write_parts
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.cli import checkpoint as command

Make = Callable[..., Checkpoint]


def shard(checkpoint: Checkpoint, path: Path, ranks: int = 2) -> Path:
    """The same checkpoint as so many processes write it, with an optimiser's state."""
    with CheckpointWriter(path, checkpoint.config) as writer:
        for file in checkpoint.files():
            writer.add_file(file, file.name)
        (writer.directory / "train_state").mkdir()
        writer.add_text("train_state/state.json", "{}")
        for rank in range(ranks):
            for folder, slot in (("shards", ""), ("train_state/shards", "/m")):
                parts = {}
                for name, tensor in checkpoint.tensors():
                    size = -(-len(tensor) // ranks)
                    if len(held := tensor[rank * size : (rank + 1) * size]):
                        parts[f"{name}{slot}"] = TensorPart(held, (rank * size, *(0,) * (tensor.ndim - 1)))
                file = f"{folder}/{rank:05d}.safetensors"
                write_parts(writer.directory / file, parts)
                writer.add_shards({file: file_record(writer.directory / file)})
    return path


def test_parts_are_a_checkpoint_like_any_other(make_model: Make, tmp_path: Path) -> None:
    whole = make_model()
    sharded = Checkpoint.open(shard(whole, tmp_path / "sharded", ranks=3))
    assert sharded.fingerprint == whole.fingerprint and sharded.names() == whole.names()
    assert find_damage(sharded.path) == []


@pytest.mark.slow
def test_transformers_opens_what_is_exported(tmp_path: Path) -> None:
    whole = Checkpoint.open(tiny.write_chat_model(tmp_path / "chat"))
    assert (
        command.main(["export", "-model", str(shard(whole, tmp_path / "sharded")), "-output", str(tmp_path / "out")])
        == 0
    )
    export_hf(tmp_path / "out", tmp_path / "hf")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = tiny.token_ids(1, 6)
    with torch.no_grad():
        torch.testing.assert_close(reference(ids).logits, load_model(whole.path)(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("action", ["consolidate", "export"])
def test_consolidate_makes_it_whole(make_model: Make, tmp_path: Path, action: str) -> None:
    whole = make_model()
    path = shard(whole, tmp_path / "sharded")
    assert command.main([action, "-model", str(path), "-output", str(tmp_path / "out")]) == 0
    out = Checkpoint.open(tmp_path / "out")
    assert out.fingerprint == whole.fingerprint and find_damage(out.path, thorough=True) == []
    assert {file.name for file in out.files()} == {file.name for file in whole.files()}
    state = tmp_path / "out/train_state"
    assert state.is_dir() == (action == "consolidate")
    if state.is_dir():
        optimizer = SafetensorsSet(state, ["optimizer.safetensors"])
        assert all(torch.equal(optimizer.tensor(f"{name}/m"), tensor) for name, tensor in whole.tensors())


def test_damage_and_missing_files_are_told(
    make_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shard(make_model(), tmp_path / "sharded")
    file = path / "shards/00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert command.main(["consolidate", "-model", str(path), "-output", str(tmp_path / "out")]) == 4
    assert "has other values than when it was written" in capsys.readouterr().err
    file.unlink()
    assert command.main(["export", "-model", str(path), "-output", str(tmp_path / "out")]) == 4
    assert "shards/00001.safetensors is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
