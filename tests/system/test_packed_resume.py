"""Packed corpora of a new model: `onmt_llm_data pack` without torch, a training run, and the same run resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import yaml

from onmt_llm.cli.data import main as data
from onmt_llm.cli.train import main as train

LINES = ["a b c d", "b c", "d a a", "c c b a"] * 8
WITHOUT_TORCH = """
import sys
from onmt_llm.cli.data import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch is imported"
sys.exit(code)
"""


def write_vocab(folder: Path, *tokens: str) -> None:
    folder.joinpath("vocab.txt").write_text("\n".join(["<unk>", "<blank>", "<s>", "</s>", *"abcd", *tokens]))


def no_tokenizer(folder: Path) -> dict[str, Any]:
    write_vocab(folder)
    return {"src_vocab": "vocab.txt", "data": {"x": {"path_src": "x.txt"}}}


def with_sentencepiece(folder: Path) -> dict[str, Any]:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(folder / "sp"),
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    names = {"transforms": ["sentencepiece"], "src_subword_model": "sp.model"}
    return {**names, "data": {"x": {"path_src": "x.txt"}}}


def with_bpe(folder: Path) -> dict[str, Any]:
    folder.joinpath("codes.txt").write_text("#version: 0.2\na b</w>\n")
    names = {"transforms": ["bpe"], "src_subword_model": "codes.txt"}
    return {**no_tokenizer(folder), **names}


def with_template(folder: Path) -> dict[str, Any]:
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": x}]} for x in LINES]
    folder.joinpath("x.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return {**with_sentencepiece(folder), "data": {"x": {"path_jsonl": "x.jsonl", "template": "chatml"}}}


@pytest.mark.parametrize("text_side", [no_tokenizer, with_sentencepiece, with_bpe, with_template])
def test_a_run_on_packed_corpora_is_resumed(text_side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("\n".join(LINES) + "\n")
    options = text_side(tmp_path)
    options["data"]["x"]["path_packed"] = "packs"
    shape = {"model_task": "lm", "decoder_layers": 1, "hidden_size": 8, "heads": 2, "ffn_size": 8}
    run = {"save_model": "run/m", "train_from": "auto", "save_checkpoint_steps": 1, "seed": 3, "batch_size": 4}
    Path("x.yaml").write_text(yaml.safe_dump({**options, **shape, **run}))
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "pack", "-config", "x.yaml"], check=True)
    assert train(["-config", "x.yaml", "-train_steps", "1"]) == 0
    assert train(["-config", "x.yaml", "-train_steps", "2"]) == 0
    assert Path("run/m_step_2").is_dir()
    assert data(["pack", "-config", "x.yaml"]) == 0
    assert len(list(Path("packs").iterdir())) == 1
    assert data(["report", "-config", "x.yaml"]) == 0
