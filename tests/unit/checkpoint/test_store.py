"""Writing and opening checkpoints: shards, overwriting, crashes."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from onmt_llm.checkpoint.directory import find_damage, write_manifest
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet, SafetensorsWriter, parse_size
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, ConfigError

CONFIG = CheckpointConfig(model=ModelConfig(vocab_size=8, hidden_size=8, heads=2))
TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "c.weight": torch.randn(5, 3, dtype=torch.float16).t(),
    "scalar": torch.tensor(7.0),
}


def write(path: Path, **options: object) -> Checkpoint:
    with CheckpointWriter(path, CONFIG, **options) as writer:  # type: ignore[arg-type]
        for name, tensor in TENSORS.items():
            writer.add(name, tensor)
        writer.add_text("vocab.txt", "a\n")
    return Checkpoint.open(path)


@pytest.mark.parametrize("shard_size", ["5GB", "40"])
def test_what_is_written_is_read(tmp_path: Path, shard_size: str) -> None:
    checkpoint = write(tmp_path / "model", shard_size=shard_size)
    assert checkpoint.config == CONFIG
    assert checkpoint.names() == sorted(TENSORS)
    for name, tensor in checkpoint.tensors():
        assert tensor.dtype == TENSORS[name].dtype and torch.equal(tensor, TENSORS[name])
    assert [file.name for file in checkpoint.files()] == ["vocab.txt"]


def test_other_libraries_read_the_shards(tmp_path: Path) -> None:
    write(tmp_path / "model", shard_size="60")
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "model" / file)[name], TENSORS[name])


@pytest.mark.parametrize("room", [16, 1 << 10])
def test_a_header_that_outgrows_its_room_is_still_right(tmp_path: Path, room: int) -> None:
    with SafetensorsWriter(tmp_path / "x.safetensors", header_room=room) as writer:
        for name, tensor in TENSORS.items():
            writer.add(name, tensor.contiguous())
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_pt_may_be_there_or_not(tmp_path: Path) -> None:
    write(tmp_path / "plain")
    write(tmp_path / "dotted.pt")
    for name in ("plain", "plain.pt", "dotted", "dotted.pt"):
        assert Checkpoint.open(tmp_path / name).path == tmp_path / ("plain" if "plain" in name else "dotted.pt")


def test_an_existing_output_is_kept_without_overwrite(tmp_path: Path) -> None:
    before = write(tmp_path / "model").fingerprint
    with pytest.raises(CheckpointError, match="exists already"):
        write(tmp_path / "model")
    assert Checkpoint.open(tmp_path / "model").fingerprint == before
    assert write(tmp_path / "model", overwrite=True).fingerprint == before


def test_a_directory_that_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        write(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.txt").exists()


def test_an_error_while_writing_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    before = write(tmp_path / "model").fingerprint
    with pytest.raises(RuntimeError), CheckpointWriter(tmp_path / "model", CONFIG, overwrite=True) as writer:
        writer.add("a.weight", torch.zeros(2))
        raise RuntimeError("the source broke off")
    assert Checkpoint.open(tmp_path / "model").fingerprint == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_killed_writer_is_cleaned_up_after(tmp_path: Path) -> None:
    before = write(tmp_path / "model").fingerprint
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    mark = f"{socket.gethostname()}-{dead.stdout.strip()}"
    (tmp_path / f".model.tmp-{mark}").mkdir()
    (tmp_path / "model").rename(tmp_path / f".model.old-{mark}")
    with pytest.raises(CheckpointError, match="exists already"):
        CheckpointWriter(tmp_path / "model", CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert Checkpoint.open(tmp_path / "model").fingerprint == before


def test_the_same_tensor_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is added twice"), CheckpointWriter(tmp_path / "model", CONFIG) as writer:
        writer.add("a", torch.zeros(2))
        writer.add("a", torch.zeros(2))


def test_fingerprint_depends_on_content_only(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    sharded = write(tmp_path / "sharded", shard_size="40")
    assert one.fingerprint == sharded.fingerprint
    shutil.copytree(one.path, tmp_path / "copy")
    write_manifest(tmp_path / "copy")
    assert Checkpoint.open(tmp_path / "copy").fingerprint == one.fingerprint


def test_a_changed_weight_is_found_and_changes_the_fingerprint(tmp_path: Path) -> None:
    before = write(tmp_path / "model").fingerprint
    assert find_damage(tmp_path / "model") == []
    file = tmp_path / "model/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert find_damage(tmp_path / "model") == ["model.safetensors has other values in scalar than when it was written"]
    with pytest.raises(CheckpointError, match="scalar in model"):
        Checkpoint.open(tmp_path / "model").tensor("scalar")
    write_manifest(tmp_path / "model")
    assert Checkpoint.open(tmp_path / "model").fingerprint != before


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Checkpoint.open(tmp_path / "absent")
    (tmp_path / "file.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="onmt_llm_convert"):
        Checkpoint.open(tmp_path / "file")
    write(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has another size"):
        Checkpoint.open(tmp_path / "model")
    write_manifest(tmp_path / "model")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        Checkpoint.open(tmp_path / "model")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Checkpoint.open(tmp_path / "model")
    write_manifest(tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds neither"):
        Checkpoint.open(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 99}, "but has 99"),
        ({"model": {"heads": 3, "hidden_size": 8}}, "multiple of heads"),
        ({"modle": {}}, "modle"),
    ],
)
def test_a_wrong_config_is_one_sentence(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    write(tmp_path / "model")
    file = tmp_path / "model/config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}))
    write_manifest(tmp_path / "model")
    with pytest.raises(CheckpointError, match=sentence):
        Checkpoint.open(tmp_path / "model")


def test_an_index_may_not_point_outside(tmp_path: Path) -> None:
    write(tmp_path / "model", shard_size="40")
    file = tmp_path / "model/model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["a.weight"] = "../elsewhere.safetensors"
    file.write_text(json.dumps(index))
    write_manifest(tmp_path / "model")
    with pytest.raises(CheckpointError, match="beside its index"):
        Checkpoint.open(tmp_path / "model")


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        with SafetensorsWriter(tmp_path / file) as writer:
            writer.add("w", torch.zeros(1))
    with pytest.raises(CheckpointError, match="both in"):
        SafetensorsSet(tmp_path, ["a.safetensors", "b.safetensors"])


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(CheckpointError, match="not a readable"):
        SafetensorsSet(tmp_path, ["x.safetensors"])


def test_sizes() -> None:
    assert [parse_size(size) for size in ("5GB", "1.5KiB", 7, "200 mb")] == [5 * 10**9, 1536, 7, 2 * 10**8]
    for wrong in ("", "GB", "0", "5XB", "-1GB"):
        with pytest.raises(ConfigError):
            parse_size(wrong)


@pytest.mark.parametrize("address", ["https://example.com/x", "s3://bucket/model.pt"])
def test_an_address_is_no_folder(address: str) -> None:
    with pytest.raises(CheckpointError, match=f"local directory, but {address} is a URL"):
        Checkpoint.open(address)
