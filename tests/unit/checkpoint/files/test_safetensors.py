"""Safetensors files: sizes, shards, indexes that do not fit, and lazy reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onmt_llm.checkpoint.files.safetensors import (
    DTYPE_NAMES,
    INDEX_FILE,
    WEIGHTS_FILE,
    SafetensorsSet,
    SafetensorsWriter,
    ShardedWriter,
    open_index,
    parse_size,
    tensor_digest,
)
from onmt_llm.errors import CheckpointError, ConfigError

TENSORS = {f"layer{i}": torch.full((4, 8), float(i)) for i in range(5)}


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5GB", 5 * 10**9), ("1.5GiB", 3 << 29), (" 200 mb ", 2 * 10**8), ("7", 7), (7, 7), ("2B", 2), ("1TB", 10**12)],
)
def test_sizes(size: str | int, expected: int) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "0", "0.0GB", "-1", "5 XB", "1e3", "1,5GB"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="shard_size must be a size such as 5GB"):
        parse_size(size)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_every_type_is_written_as_safetensors_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype).t()
    with SafetensorsWriter(tmp_path / "x.safetensors") as writer:
        writer.add("x", tensor)
        writer.add("empty", torch.empty(0, 3, dtype=dtype))
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded["x"].dtype == dtype and torch.equal(loaded["x"], tensor) and loaded["empty"].shape == (0, 3)


@pytest.mark.parametrize(("limit", "shards"), [(10**6, 1), (256, 3), (128, 5), (1, 5)])
def test_shards_have_a_limit_and_an_index(tmp_path: Path, limit: int, shards: int) -> None:
    writer = ShardedWriter(tmp_path, limit)
    for name, tensor in TENSORS.items():
        writer.add(name, tensor)
    assert writer.close() == sorted(TENSORS)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    if shards == 1:
        assert files == [WEIGHTS_FILE] and not (tmp_path / INDEX_FILE).exists()
        found = SafetensorsSet(tmp_path, files)
    else:
        assert files == [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
        assert json.loads((tmp_path / INDEX_FILE).read_text())["metadata"] == {"total_size": 5 * 128}
        found = open_index(tmp_path / INDEX_FILE)
    assert found.names() == sorted(TENSORS) and "layer0" in found and "none" not in found
    assert all(torch.equal(found.tensor(name), tensor) for name, tensor in TENSORS.items())
    assert (found.shape("layer1"), found.dtype("layer1")) == ((4, 8), torch.float32)


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="There is no tensor 'none' in"):
        SafetensorsSet(tmp_path, ["x.safetensors"]).tensor("none")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"Tensor 'layer\d' is both in a.safetensors and in b.safetensors"):
        SafetensorsSet(tmp_path, ["a.safetensors", "b.safetensors"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "must be JSON with a `weight_map`"),
        ('{"weight_map": 3}', "must be JSON with a `weight_map`"),
        ('{"weights": {}}', "must be JSON with a `weight_map`"),
        ("[" * 100_000, "must be JSON with a `weight_map`"),
        ('{"weight_map": {"layer0": "../x.safetensors"}}', "must be a file beside its index"),
        ('{"weight_map": {"layer0": "none.safetensors"}}', r"none.safetensors is missing"),
        ('{"weight_map": {"layer0": "x.safetensors"}}', "must list the same tensors, but differ in: layer1, layer2"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=problem):
        open_index(tmp_path / INDEX_FILE)


@pytest.mark.parametrize("left", [0, 7, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, left: int) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:left])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file") as error:
        SafetensorsSet(tmp_path, ["x.safetensors"])
    assert "copy it again" in str(error.value.hint)


def test_the_digest_depends_on_name_type_shape_and_content() -> None:
    tensor = torch.zeros(2, 3)
    others = [("y", tensor), ("x", tensor.half()), ("x", tensor.reshape(3, 2)), ("x", tensor + 1)]
    assert len({tensor_digest("x", tensor), *(tensor_digest(*other) for other in others)}) == 5
    assert tensor_digest("x", tensor) == tensor_digest("x", torch.zeros(3, 2).t())
