"""One folder for the tests of the Python functions: a tiny model, and a run that trains one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import onmt_llm
import tiny

RUN = """
data: {letters: {path_src: letters.txt}}
src_vocab: run/vocab.txt
save_model: run/model
decoder_layers: 1
hidden_size: 16
heads: 2
ffn_size: 16
batch_size: 4
num_workers: 0
report_every: 1
"""


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints `llama` (of bytes) and `words`, and `run.yaml` with its corpus and vocabulary."""
    folder = tmp_path_factory.mktemp("api")
    tiny.write_chat_model(folder / "llama")
    tiny.write_checkpoint(folder / "words", tiny.llama())
    (folder / "run").mkdir()
    (folder / "run.yaml").write_text(RUN)
    (folder / "letters.txt").write_text("a b c\nb c d\nc d e\n" * 4)
    tiny.write_vocab(folder / "run" / "vocab.txt", ["<unk>", "<s>", "</s>", *"abcde"])
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="package")
def engine(folder: Path) -> Iterator[onmt_llm.TextEngine]:
    yield onmt_llm.open_engine(folder / "llama", max_length=8)
