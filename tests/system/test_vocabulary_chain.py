"""A truncated vocabulary and a tokeniser file survive every operation on a model unchanged."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.cli import build_vocab, lora, train, translate

pytest.importorskip("sentencepiece")

MODEL = {
    **{"encoder_layers": 1, "decoder_layers": 1, "hidden_size": 32, "heads": 2, "ffn_size": 48, "position": "rotary"},
    **{"share_embeddings": True, "share_decoder_embeddings": True},
}
RUN = {
    **{"batch_size": 32, "optim": "adamw", "learning_rate": 0.003, "dropout": 0.1, "seed": 5, "device": "cpu"},
    **{"report_every": 100, "valid_steps": 100, "save_checkpoint_steps": 3},
}


def write_corpora(folder: Path) -> None:
    """Words and the same words backwards; in the second corpus some have capitals, which the first lacks."""
    rng = random.Random(3)
    words = ["".join(rng.choice("abcdefghijkl") for _ in range(rng.randint(2, 5))) for _ in range(40)]
    for name, size in (("first", 300), ("second", 300), ("valid", 8)):
        lines = [[rng.choice(words) for _ in range(rng.randint(2, 5))] for _ in range(size)]
        if name == "second":
            lines = [[word.upper() if rng.random() < 0.3 else word for word in line] for line in lines]
        (folder / f"{name}.src").write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")
        (folder / f"{name}.tgt").write_text("".join(" ".join(line)[::-1] + "\n" for line in lines), encoding="utf-8")


def write_yaml(folder: Path, name: str, corpus: str, **options: Any) -> str:
    data = {
        key: {"path_src": f"{folder}/{part}.src", "path_tgt": f"{folder}/{part}.tgt"}
        for key, part in (("corpus", corpus), ("valid", "valid"))
    }
    common = {"data": data, "transforms": ["sentencepiece"], "src_subword_model": f"{folder}/sp.model"}
    file = folder / f"{name}.yaml"
    saved = {"save_model": f"{folder}/{name}/m", "save_data": f"{folder}/data"}
    file.write_text(yaml.safe_dump({**common, "share_vocab": True, **saved, **options}), encoding="utf-8")
    return str(file)


def run(command: Any, *words: str | Path) -> None:
    assert command.main([str(word) for word in words]) == 0


def trained(config: str, folder: Path, steps: int, *, resumed: bool) -> Checkpoint:
    """After `steps` updates: in one go, or ended half-way and begun again by the same command."""
    words = ["-config", config, "-train_from", "auto"]
    if resumed:
        run(train, *words, "-train_steps", str(steps // 2))
    run(train, *words, "-train_steps", str(steps))
    checkpoint = Checkpoint.open(folder / Path(config).stem / f"m_step_{steps}")
    assert {file.name for file in checkpoint.files()} == {"vocab.txt", "sp.model", "provenance.json"}
    assert (checkpoint.path / "sp.model").read_bytes() == (folder / "sp.model").read_bytes()
    return checkpoint


def trained_twice(config: str, folder: Path, steps: int) -> Checkpoint:
    """The resumed run is the uninterrupted one to the bit, and has its vocabulary."""
    whole = trained(config, folder, steps, resumed=False)
    expected = {name: whole.tensor(name) for name in whole.names()}
    vocabulary = list(whole.codec().vocab)
    shutil.rmtree(folder / Path(config).stem)
    checkpoint = trained(config, folder, steps, resumed=True)
    assert list(checkpoint.codec().vocab) == vocabulary
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in expected.items())
    return checkpoint


def answers(folder: Path, model: Path) -> str:
    output = folder / "answers.txt"
    run(translate, "-model", model, "-src", folder / "valid.src", "-output", output, "-beam_size", "2", "-gpu", "-1")
    return output.read_text(encoding="utf-8")


def test_nothing_of_the_text_side_is_lost_on_the_way(tmp_path: Path) -> None:
    write_corpora(tmp_path)
    learned = {"src_vocab": f"{tmp_path}/all.txt"}
    learn = ["-n_sample", "-1", "-learn_subwords", "-learn_subwords_size", "300"]
    both = {**learned, "tgt_subword_model": f"{tmp_path}/sp.model"}  # one model, named for either side
    run(build_vocab, "-config", write_yaml(tmp_path, "count", "second", **both), *learn)

    cut = {**learned, "src_vocab_size": 40}
    base = trained_twice(write_yaml(tmp_path, "base", "first", **cut, **MODEL, **RUN), tmp_path, 6)
    first = list(base.codec().vocab)
    assert base.config.model.vocab_size == len(first) == 40

    on_top = {"lora_layers": ["q_proj", "v_proj"], "lora_rank": 2, "init_from": str(base.path)}
    adapter = trained_twice(write_yaml(tmp_path, "adapted", "second", **cut, **on_top, **RUN), tmp_path, 6)
    assert list(adapter.codec().vocab) == first
    merged = tmp_path / "merged"
    run(lora, "-base_model", base.path, "-lora_weights", adapter.path, "-output", merged)
    assert answers(tmp_path, merged) == answers(tmp_path, adapter.path)

    wider = {**learned, "src_vocab_size": 64, "update_vocab": True, "init_from": str(merged)}
    # With almost no training, the rows of tokens that both have are those of the base.
    still = {**RUN, "learning_rate": 1e-30, "weight_decay": 0.0}
    kept = trained(write_yaml(tmp_path, "still", "second", **wider, **still), tmp_path, 3, resumed=False)
    tokens, old = list(kept.codec().vocab), Checkpoint.open(merged).tensor("decoder.embed_tokens.weight")
    assert len(tokens) == 64 and set(first) <= {*tokens}
    rows = kept.tensor("decoder.embed_tokens.weight")[[tokens.index(token) for token in first]]
    torch.testing.assert_close(rows, old, rtol=0, atol=1e-20)
    final = trained_twice(write_yaml(tmp_path, "wider", "second", **wider, **RUN), tmp_path, 6)
    assert list(final.codec().vocab) == tokens
    assert len(answers(tmp_path, final.path).splitlines()) == 8
