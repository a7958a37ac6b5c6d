"""`onmt_llm_convert` from the command line: there and back, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.cli.convert import main
from onmt_llm.config.checkpoint import SpecialTokens


@pytest.fixture
def model(tmp_path: Path) -> str:
    vocab = ["<unk>", "<s>", "</s>", "<blank>", *(f"w{i}" for i in range(20))]
    specials = SpecialTokens(pad="<blank>")
    return str(tiny.write_checkpoint(tmp_path / "model", tiny.llama(), vocab, specials=specials))


def test_an_opennmt_file_and_back_keeps_every_weight(model: str, tmp_path: Path) -> None:
    """`exported.pt` becomes the checkpoint `exported`, beside it."""
    exported, back = tmp_path / "exported.pt", tmp_path / "exported"
    assert main(["-model_dir", model, "-to", "opennmt", "-output", str(exported)]) == 0
    assert main(["-model_dir", str(exported), "-output", str(back)]) == 0
    first, second = (dict(Checkpoint.open(path).tensors()) for path in (model, back))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_what_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("")
    assert main(["-model_dir", model, "-to", "hf", "-output", str(tmp_path / "taken")]) == 4
    assert "exists already" in capsys.readouterr().err
    assert main(["-model_dir", str(tmp_path / "nowhere"), "-to", "hf", "-output", str(tmp_path / "x")]) == 4
    assert "model_dir: " in capsys.readouterr().err
    assert main(["-model_dir", model, "-vocab_file", "nowhere", "-output", str(tmp_path / "x")]) == 3
    assert "'vocab_file' must be a file that exists" in capsys.readouterr().err


def test_a_modelfile_is_not_replaced_without_force(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "chat.Modelfile"
    mine.write_text("FROM ./other.gguf\n")
    for output in ("chat", "chat.gguf"):
        assert main(["-model_dir", model, "-to", "gguf", "-output", str(tmp_path / output)]) == 4
        assert f"{mine} exists already" in capsys.readouterr().err
    assert mine.read_text() == "FROM ./other.gguf\n"


def test_what_another_command_writes_is_refused_with_that_command(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to, command in {"ctranslate2": "release_model -model ", "litgpt": "onmt_llm_convert -to hf "}.items():
        assert main(["-model_dir", model, "-to", to, "-output", str(tmp_path / "x")]) == 2
        assert command in capsys.readouterr().err
