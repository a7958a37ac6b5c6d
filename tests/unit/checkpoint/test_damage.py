"""Opening a damaged or inconsistent checkpoint, adapter or release is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onmt_llm.checkpoint.directory import MANIFEST_FILE, damage_ignored, find_damage, write_manifest
from onmt_llm.checkpoint.files.safetensors import tensor_digest
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.merge import merge_lora
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter, seal
from onmt_llm.cli import checkpoint as checkpoint_command
from onmt_llm.cli import translate as translate_command
from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.errors import CheckpointError, OnmtLlmError
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release

Make = Callable[..., Checkpoint]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.yaml, and say so to the manifest."""
    content = yaml.safe_load((directory / CONFIG_FILE).read_text())
    change(content)
    (directory / CONFIG_FILE).write_text(yaml.safe_dump(content))
    write_manifest(directory, fingerprint=json.loads((directory / MANIFEST_FILE).read_text())["fingerprint"])


@pytest.mark.parametrize("place", [4, 100, 70_000, -1])
def test_a_flipped_byte_of_the_weights_is_not_translated_merged_or_released(
    tmp_path: Path, make_model: Make, make_adapter: Make, place: int
) -> None:
    base = make_model()
    adapter = make_adapter(base)
    weights = base.path / "model.safetensors"
    flip(weights, place)
    uses: dict[str, Callable[[], object]] = {
        "translate": lambda: open_engine(base.path),
        "the adapter's base": lambda: open_engine(adapter.path),
        "merge": lambda: merge_lora(base.path, adapter.path, tmp_path / "merged"),
        "release": lambda: release(base.path, tmp_path / "release", verify="off"),
        "copy": lambda: release(base.path, tmp_path / "plain", format="safetensors", verify="off"),
    }
    for use in uses.values():
        with pytest.raises(CheckpointError, match=r"(must be as it was written|is not a readable safetensors)"):
            use()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("name", ["config.yaml", "vocab.txt", MANIFEST_FILE, "model.safetensors.index.json"])
def test_a_flipped_byte_beside_the_weights_is_noticed(make_model: Make, name: str) -> None:
    path = make_model(shard_size="2KB").path
    for place in range(0, (path / name).stat().st_size, 37):
        flip(path / name, place)
        with pytest.raises(OnmtLlmError):
            Checkpoint.open(path)
        flip(path / name, place)
    Checkpoint.open(path)


def test_the_manifest_is_no_hole(make_model: Make) -> None:
    path = make_model().path
    manifest = (path / MANIFEST_FILE).read_text()
    content = json.loads(manifest)

    def refuses(sentence: str) -> None:
        with pytest.raises(CheckpointError, match=sentence):
            Checkpoint.open(path)

    (path / MANIFEST_FILE).unlink()
    refuses("manifest.json is missing")
    for forged in (
        {**content, "files": {}},
        {**content, "version": 1},
        {**content, "version": 0},
        {key: value for key, value in content.items() if key != "checksum"},
        {**content, "files": {**content["files"], "../../etc/passwd": {"size": 0, "sha256": ""}}},
        [],
    ):
        (path / MANIFEST_FILE).write_text(json.dumps(forged))
        refuses("manifest.json cannot be read")
    (path / MANIFEST_FILE).write_text(json.dumps({**content, "version": 99}))
    refuses("must have a version of at most")
    (path / MANIFEST_FILE).write_text("[" * 100_000)
    refuses("manifest.json cannot be read")
    (path / MANIFEST_FILE).write_text(manifest)
    (path / "notes.txt").write_text("my best run")
    Checkpoint.open(path)
    (path / "src_vocab.txt").write_text("a\n")
    refuses("src_vocab.txt is not listed")
    (path / "src_vocab.txt").unlink()
    (path / "vocab.txt").rename(path / "old")
    refuses("vocab.txt is missing")


def test_damage_may_be_ignored_and_a_change_recorded(
    make_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_model().path
    content = yaml.safe_load((path / CONFIG_FILE).read_text())
    (path / CONFIG_FILE).write_text(yaml.safe_dump({**content, "stop": ["###"]}))
    (tmp_path / "q").write_text("t1 t2\n")
    words = ["-model", str(path), "-src", str(tmp_path / "q"), "-output", str(tmp_path / "a"), "-device", "cpu"]
    assert translate_command.main(words) == 4
    error = capsys.readouterr().err
    assert "config.yaml has" in error and f"onmt_llm_checkpoint seal -model {path}" in error
    assert "-ignore_damage" in error and "Traceback" not in error
    assert translate_command.main([*words, "-ignore_damage", "true"]) == 0
    assert "It is used nevertheless" in capsys.readouterr().err
    assert translate_command.main(words) == 4
    fingerprint = json.loads((path / MANIFEST_FILE).read_text())["fingerprint"]
    assert checkpoint_command.main(["seal", "-model", str(path)]) == 0
    assert "before: config.yaml has" in capsys.readouterr().out
    assert translate_command.main(words) == 0
    assert Checkpoint.open(path).config.stop == ["###"] and Checkpoint.open(path).fingerprint == fingerprint


def test_weights_are_ignored_too_where_damage_is(make_model: Make) -> None:
    path = make_model().path
    flip(path / "model.safetensors", -3)
    with damage_ignored():
        load_model(path)
    with pytest.raises(CheckpointError):
        load_model(path)


def test_checkpoints_of_before_are_read(
    make_model: Make, make_adapter: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_model()
    adapter, fingerprint = make_adapter(base), base.fingerprint
    edit(base.path, lambda content: content.update(format_version=1))
    content = json.loads((base.path / MANIFEST_FILE).read_text())
    files = {name: {key: entry[key] for key in ("size", "sha256")} for name, entry in content["files"].items()}
    (base.path / MANIFEST_FILE).write_text(json.dumps({"version": 1, "files": files}))
    assert Checkpoint.open(base.path).fingerprint == fingerprint
    flip(base.path / "model.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has"):
        Checkpoint.open(base.path)
    flip(base.path / "model.safetensors", -1)
    (base.path / MANIFEST_FILE).unlink()
    merge_lora(base.path, adapter.path, tmp_path / "merged")
    assert f"{base.path} has no manifest.json" in caplog.text
    flip(base.path / "model.safetensors", -1)
    with pytest.raises(CheckpointError, match="fingerprint"):
        merge_lora(base.path, adapter.path, tmp_path / "again")
    assert Checkpoint.open(tmp_path / "merged").config.format_version > 1


@pytest.mark.parametrize(
    ("value", "place"),
    [(float("nan"), 0), (float("nan"), 37), (float("nan"), -1), (float("inf"), 5), (-float("inf"), -2)],
)
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    make_model: Make, tmp_path: Path, value: float, place: int
) -> None:
    good = make_model()
    bad = dict(good.tensors())
    name = sorted(bad)[3]
    bad[name].view(-1)[place] = value

    def write(path: Path) -> None:
        with CheckpointWriter(path, good.config) as writer:
            for tensor in bad:
                writer.add(tensor, bad[tensor])
            writer.add_file(good.path / "vocab.txt", "vocab.txt")

    with pytest.raises(CheckpointError, match=f"must be finite numbers, but {name}"):
        write(tmp_path / "bad")
    with damage_ignored():
        write(tmp_path / "bad")
    with pytest.raises(CheckpointError, match="must be finite"):
        load_model(tmp_path / "bad")
    with pytest.raises(CheckpointError, match="must be finite"):
        seal(tmp_path / "bad")
    edit(tmp_path / "bad", lambda content: content.update(format_version=1))
    (tmp_path / "bad" / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="must be finite"):
        load_model(tmp_path / "bad")


NONSENSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "heads 0": lambda c: c["model"].update(heads=0),
    "hidden_size beyond memory": lambda c: c["model"].update(hidden_size=2**31),
    "layers without end": lambda c: c["model"].update(decoder_layers=10**9),
    "norm_eps nan": lambda c: c["model"].update(norm_eps=float("nan")),
    "norm_eps -1": lambda c: c["model"].update(norm_eps=-1),
    "theta 0": lambda c: c["model"]["rope"].update(theta=0),
    "theta nan": lambda c: c["model"]["rope"].update(theta=float("nan")),
    "eos that is no token": lambda c: c["specials"].update(eos="<nope>"),
    "unk that is no token": lambda c: c["specials"].update(unk="<nope>"),
    "fewer rows than tokens": lambda c: c["model"].update(vocab_size=19),
    "more rows than tokens": lambda c: c["model"].update(vocab_size=30),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_in_a_config_is_one_sentence(make_model: Make, tmp_path: Path, what: str) -> None:
    path = make_model().path
    edit(path, NONSENSE[what])
    for use in (open_engine, load_and_speak, lambda p: release(p, tmp_path / "out", verify="off")):
        with pytest.raises(CheckpointError) as error:
            use(path)
        assert "\n" not in error.value.message


def load_and_speak(path: Path) -> object:
    return Checkpoint.open(path).codec()


def test_a_vocabulary_of_another_length_is_not_released(make_model: Make, tmp_path: Path) -> None:
    path = make_model().path
    tokens = (path / "vocab.txt").read_text().splitlines()
    (path / "vocab.txt").write_text("\n".join(tokens[:7]) + "\n")
    write_manifest(path)
    with pytest.raises(CheckpointError, match="7 tokens for 20 rows"):
        release(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.yaml", "[" * 50_000), ("config.yaml", "{a: " * 50_000), ("model.safetensors.index.json", "[" * 300_000)],
)
def test_deep_files_are_one_sentence(make_model: Make, name: str, content: str) -> None:
    path = make_model(shard_size="2KB").path
    (path / name).write_text(content)
    write_manifest(path)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Checkpoint.open(path)


def test_a_missing_base_and_a_damaged_one_have_different_messages(make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    flip(base.path / "vocab.txt", 0)
    with pytest.raises(CheckpointError, match=r"vocab\.txt has"):
        load_model(adapter.path)
    shutil.rmtree(base.path)
    with pytest.raises(CheckpointError, match="no checkpoint is there"):
        load_model(adapter.path)


def test_verify_takes_checkpoints_adapters_and_releases(
    make_model: Make, make_adapter: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model()
    make_adapter(base)
    release(base.path, tmp_path / "ct2", verify="off")
    release(base.path, tmp_path / "plain", format="safetensors")
    for name in ("base", "adapter", "ct2", "plain"):
        directory = tmp_path / name
        assert checkpoint_command.main(["verify", "-model", str(directory)]) == 0
        weights = next(directory.glob("model.bin")) if name == "ct2" else next(directory.glob("*.safetensors"))
        flip(weights, -1)
        assert find_damage(directory) and checkpoint_command.main(["verify", "-model", str(directory)]) == 4
        assert "must be as it was written" in capsys.readouterr().err


def test_a_damaged_release_is_never_mapped(make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(make_model().path, tmp_path / "ct2", verify="off")
    ctranslate2 = pytest.importorskip("ctranslate2")
    monkeypatch.setattr(ctranslate2, "Generator", lambda *_, **__: pytest.fail("it was mapped"))
    flip(tmp_path / "ct2" / "model.bin", 50)
    with pytest.raises(CheckpointError, match=r"model\.bin has"):
        open_engine(tmp_path / "ct2")
    with damage_ignored(), pytest.raises(CheckpointError, match=r"model\.bin has"):
        open_engine(tmp_path / "ct2")


def test_a_release_can_be_sealed(make_model: Make, tmp_path: Path) -> None:
    release(make_model().path, tmp_path / "ct2", verify="off")
    (tmp_path / "ct2" / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        open_engine(tmp_path / "ct2")
    assert checkpoint_command.main(["seal", "-model", str(tmp_path / "ct2")]) == 0
    open_engine(tmp_path / "ct2", device="cpu")


def test_the_fingerprint_is_that_of_the_tensors(make_model: Make) -> None:
    one, other = make_model(), make_model("other", seed=1)
    assert one.fingerprint != other.fingerprint == Checkpoint.open(other.path).fingerprint
    assert tensor_digest("a", torch.zeros(2)) != tensor_digest("b", torch.zeros(2))
    seal(one.path)
    assert Checkpoint.open(one.path).fingerprint == one.fingerprint
