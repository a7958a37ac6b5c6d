"""Hostile configuration files, and paths that are no files, are refused in bounded time and memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import yaml

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.checkpoint import read_config
from onmt_llm.config.loading.yaml_file import MAX_BYTES, load_plain, parse_scalar, read_yaml
from onmt_llm.errors import CheckpointError, ConfigError


def aliases(first: str, row: str, *, times: int, levels: int = 9) -> str:
    """`levels` values, each of which holds the one before it several times."""
    rows = [row.format(n=n, below=", ".join([f"*a{n - 1}"] * times)) for n in range(1, levels)]
    return "\n".join([first, *rows]) + "\n"


HOSTILE = {
    "billion laughs": aliases("a0: &a0 [lol, lol]", "a{n}: &a{n} [{below}]", times=10),
    "merge keys": aliases(
        "a0: &a0 {{k: 1}}".replace("{{", "{").replace("}}", "}"), "a{n}: &a{n}\n  <<: [{below}]", times=11
    ),
    "deep": "x: " + "[" * 200_000,
    "deep by aliases": aliases("a0: &a0 [1]", "a{n}: &a{n} [{below}]", times=1, levels=5000),
    "holds itself": "x: &a [*a]\n",
    "binary": "save_model: !!binary aGVsbG8=\n",
    "Python": "save_model: !!python/object/apply:os.system [true]\n",
    "a time": "save_model: !!timestamp 2020-02-02\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "a key of many": "? [a, b]\n: 1\n",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused_at_once(case: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(HOSTILE[case])
    with pytest.raises(ConfigError, match=r"x\.yaml:\d+ must be YAML, but"):
        load_job("onmt_llm_train", ["-config", str(tmp_path / "x.yaml")])
    with pytest.raises(yaml.YAMLError):
        load_plain(HOSTILE[case])
    (tmp_path / "config.yaml").write_text(HOSTILE[case])
    with pytest.raises(CheckpointError, match=r"config\.yaml must be YAML"):
        read_config(tmp_path)


def test_hostile_flags_are_text(tmp_path: Path) -> None:
    for text in ("[" * 200_000, "!!binary aGVsbG8=", "&a [*a]"):
        assert parse_scalar(text) == text


def test_aliases_and_merge_keys_work(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("data:\n  a: &a {path_src: x, weight: 2}\n  b:\n    <<: *a\n    weight: 3\n")
    corpora = load_job("onmt_llm_train", ["-config", str(tmp_path / "x.yaml")]).job.corpora.data
    assert [(corpus.path_src, corpus.weight) for corpus in corpora.values()] == [("x", 2), ("x", 3)]


def test_a_device_without_end_is_too_large() -> None:
    with pytest.raises(ConfigError, match="at most 4 MiB, but /dev/zero is larger"):
        read_yaml("/dev/zero")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "x.yaml", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="at most 4 MiB"):
        read_yaml(str(tmp_path / "x.yaml"))


def test_a_pipe_that_nobody_writes_to_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="nobody writes to"):
        read_yaml(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(("size", "problem"), [(0, None), (MAX_BYTES, "at most 4 MiB")])
def test_a_pipe_is_a_configuration_of_bounded_size(size: int, problem: str | None) -> None:
    """`-config /dev/stdin`, `-config <(...)`: what a command reads twice comes out of the pipe once."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(b"seed: 7\n#" + b"x" * size)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    if problem is None:
        assert load_job("onmt_llm_train", ["-config", f"/dev/fd/{reading}"]).job.run.seed == 7
        assert load_job("onmt_llm_train", ["-config", f"/dev/fd/{reading}"]).job.run.seed == 7
    else:
        with pytest.raises(ConfigError, match=problem):
            load_job("onmt_llm_train", ["-config", f"/dev/fd/{reading}"])
    os.read(reading, MAX_BYTES)
    writer.join(10)
    os.close(reading)


def test_a_key_that_is_written_twice_is_a_warning_with_both_lines(tmp_path: Path) -> None:
    text = "data: {a: {path_src: x}, valid: {path_src: v}}\nseed: 1\ndata: {b: {path_src: y}}\n"
    (tmp_path / "x.yaml").write_text(text)
    loaded = load_job("onmt_llm_train", ["-config", str(tmp_path / "x.yaml")])
    assert [warning for warning in loaded.warnings if "'data' is written twice" in warning and "1 and 3" in warning]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("heads: 0", "model.heads"),
        ("hidden_size: 2147483648", "model.hidden_size"),
        ("decoder_layers: 1000000000", "model.decoder_layers"),
        ("rope: {theta: 0}", "model.rope.theta"),
        ("rope: {theta: .nan}", "model.rope.theta"),
        ("norm_eps: -1", "model.norm_eps"),
        ("heads: true", "model.heads"),
    ],
)
def test_a_checkpoints_nonsense_is_refused(model: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"model: {{{model}}}\n")
    with pytest.raises(CheckpointError, match=says):
        read_config(tmp_path)


def test_a_checkpoints_configuration_is_a_file_of_bounded_size(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="must be a file of at most 4 MiB"):
        read_config(tmp_path)
    file.unlink()
    with open(file, "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="must be a file of at most 4 MiB"):
        read_config(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"must have a config\.yaml"):
        read_config(tmp_path)
