"""Vocabulary of a new model, a new vocabulary for a trained model, and pretrained embeddings."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.setup.start import open_start
from onmt_llm.training.setup.word_vectors import read_vectors
from onmt_llm.training.train import train
from options import train_config

ORACLE = Path(__file__).parents[3] / "data" / "opennmt_vocab"
WORDS = ["one", "two", "three", "four", "five"]
SIZE = 16


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with a copy task and its vocabulary files."""
    rng = random.Random(1)
    lines = "".join(" ".join(rng.choices(WORDS, k=4)) + "\n" for _ in range(60))
    for name in ("train.src", "train.tgt"):
        (tmp_path / name).write_text(lines)
    (tmp_path / "old.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (tmp_path / "new.txt").write_text("five\t9\nsix\t8\none\t7\nseven\t1\n")
    return tmp_path


def job(folder: Path, **sections: dict[str, Any]) -> TrainConfig:
    """Options of an encoder-decoder run; `sections` are merged over them."""
    data = {"train": {"path_src": str(folder / "train.src"), "path_tgt": str(folder / "train.tgt")}}
    base: dict[str, dict[str, Any]] = {
        "corpora": {"data": data},
        "vocabulary": {"src_vocab": str(folder / "old.txt"), "share_vocab": True, "vocab_size_multiple": 1},
        "batching": {"batch_size": 8, "bucket_size": 40},
        "architecture": {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "hidden_size": SIZE,
            "heads": 2,
            "ffn_size": 16,
            "lm_head_bias": True,
        },
        "run": {"save_model": str(folder / "run"), "seed": 7, "train_steps": 1},
        "logging": {"progress": "none"},
    }
    return train_config({name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})


def run(folder: Path, name: str, steps: int, **sections: dict[str, Any]) -> Checkpoint:
    merged = {**sections, "run": {"save_model": str(folder / name), "seed": 7, "train_steps": steps}}
    merged["run"].update(sections.get("run", {}))
    result = train(job(folder, **merged))
    assert result.checkpoint is not None
    return Checkpoint.open(result.checkpoint)


STILL = {"learning_rate": 1e-12}
"""Weights stay as they began."""


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("plain", {}),
        ("cut", {"src_vocab_size": 16, "tgt_words_min_frequency": 20, "vocab_size_multiple": 10}),
        ("shared", {"share_vocab": True, "src_words_min_frequency": 10}),
    ],
)
def test_a_new_models_vocabulary_is_that_of_opennmt(tmp_path: Path, case: str, options: dict[str, Any]) -> None:
    (tmp_path / "train.src").write_text("the roof\n")
    files = {f"{side}_vocab": str(ORACLE / f"words.{side}.vocab") for side in ("src", "tgt")}
    vocabulary = {"share_vocab": False, "vocab_size_multiple": 8, **files, **options}
    start = open_start(job(tmp_path, vocabulary=vocabulary))
    expected = json.loads((ORACLE / "models.json").read_text(encoding="utf-8"))[case]
    assert list(start.codec.vocab) == expected["tgt"]
    assert list(start.codec.src_vocab) == expected["src"]
    assert start.model.vocab_size == len(expected["tgt"])


@pytest.mark.parametrize("same", [False, True])
def test_a_vocabulary_that_is_not_read_is_warned_of(corpus: Path, same: bool, caplog: pytest.LogCaptureFixture) -> None:
    (corpus / "other.txt").write_text((corpus / "old.txt").read_text() + ("" if same else "more\t1\n"))
    vocabulary = {"tgt_vocab": str(corpus / "other.txt"), "src_vocab": str(corpus / "old.txt"), "share_vocab": True}
    open_start(job(corpus, vocabulary=vocabulary))
    assert ("tgt_vocab" in caplog.text and "is not read" in caplog.text) == (not same)


def test_no_special_token_is_cut_off(corpus: Path) -> None:
    (corpus / "late.txt").write_text("a\t9\nb\t8\nc\t7\n</s>\t1\n")
    vocabulary = {"src_vocab": str(corpus / "late.txt"), "src_vocab_size": 6}
    start = open_start(job(corpus, vocabulary=vocabulary))
    assert list(start.codec.vocab) == ["<unk>", "<blank>", "<s>", "</s>", "a", "b"]


def test_a_vocabulary_with_padding_of_its_own_is_padded_further(corpus: Path) -> None:
    (corpus / "padded.txt").write_text("a\naverylikely\naverunlikely\naveryunlikelytoken0\n")
    vocabulary = {"src_vocab": str(corpus / "padded.txt"), "vocab_size_multiple": 10}
    start = open_start(job(corpus, vocabulary=vocabulary, architecture={"vocab_size": 11}))
    assert len(start.codec.vocab) == 11 and list(start.codec.vocab)[-3:] == [
        f"averyunlikelytoken{n}" for n in (1, 2, 3)
    ]


def updated(folder: Path, **vocabulary: Any) -> dict[str, dict[str, Any]]:
    return {
        "run": {"train_from": str(folder / "old_step_1"), "update_vocab": True},
        "vocabulary": {"src_vocab": str(folder / "new.txt"), **vocabulary},
        "optimizer": STILL,
    }


@pytest.mark.parametrize("tied", [False, True])
def test_update_vocab_keeps_the_rows_of_known_tokens(
    corpus: Path, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    architecture = {**job(corpus).architecture.model_dump(exclude_unset=True), "tie_embeddings": tied}
    old = run(corpus, "old", 1, architecture=architecture)
    caplog.set_level(logging.INFO, logger="onmt_llm")
    new = run(corpus, "new", 1, architecture=architecture, **updated(corpus))
    tokens = list(new.codec().vocab)
    assert tokens == ["<unk>", "<blank>", "<s>", "</s>", "five", "six", "one", "seven"]
    before = list(old.codec().vocab)
    assert new.config.model.vocab_size == 8 and new.shape("decoder.embed_tokens.weight") == (8, SIZE)
    tables = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.bias"]
    for name in tables if tied else [*tables, "lm_head.weight"]:
        was, now = old.tensor(name), new.tensor(name)
        for token in ("<s>", "five", "one"):
            assert torch.allclose(now[tokens.index(token)], was[before.index(token)], atol=1e-6)
    fresh = new.tensor("decoder.embed_tokens.weight")[tokens.index("six")]
    assert 0 < fresh.abs().max() < 1
    assert torch.allclose(
        new.tensor("decoder.layers.0.mlp.up_proj.weight"), old.tensor("decoder.layers.0.mlp.up_proj.weight"), atol=1e-6
    )
    assert "6 rows kept, 2 new" in caplog.text and "a new run starts at step 0 with a new optimiser" in caplog.text


def test_update_vocab_can_part_a_shared_vocabulary_and_keep_the_step(corpus: Path) -> None:
    old = run(corpus, "old", 1)
    sections = updated(corpus, share_vocab=False, tgt_vocab=str(corpus / "old.txt"))
    sections["run"]["reset_optim"] = "states"
    new = run(corpus, "new", 2, **sections)
    assert new.path.name == "new_step_2"
    assert list(new.codec().src_vocab)[4:] == ["five", "six", "one", "seven"]
    assert list(new.codec().vocab)[4:] == WORDS
    name = "encoder.embed_tokens.weight"
    assert torch.allclose(new.tensor(name)[4], old.tensor(name)[8], atol=1e-6)


def test_a_run_with_a_new_vocabulary_is_resumed_with_the_same_yaml(corpus: Path) -> None:
    run(corpus, "old", 1)
    sections = updated(corpus)
    first = run(corpus, "new", 1, **sections)
    sections["run"]["train_from"] = str(first.path)
    assert run(corpus, "new", 2, **sections).path.name == "new_step_2"


def test_update_vocab_refuses_adapters_and_plans_without_them(corpus: Path) -> None:
    run(corpus, "old", 1)
    sections = updated(corpus)
    assert "Initialised from" in plan(job(corpus, **sections)).report()
    with pytest.raises(ConfigError, match="update_vocab needs training of the whole model"):
        plan(job(corpus, **sections, lora={"lora_layers": ["q_proj"]}))


def vectors(folder: Path, *tokens: str, width: int = SIZE, header: bool = False) -> str:
    """A file of vectors: that of the n-th token is n + 1, `width` times."""
    lines = [f"{len(tokens)} {width}"] if header else []
    lines += [" ".join([token, *[str(n + 1)] * width]) for n, token in enumerate(tokens)]
    (folder / "vectors.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(folder / "vectors.txt")


@pytest.mark.parametrize("header", [False, True])
def test_pretrained_vectors_are_in_the_rows_of_their_tokens(
    corpus: Path, header: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="onmt_llm")
    path = vectors(corpus, "two", "nowhere", "one", header=header)
    embeddings = {"src_embeddings": path, "embeddings_type": "word2vec" if header else "GloVe"}
    made = run(corpus, "new", 1, embeddings=embeddings, optimizer=STILL)
    encoder, decoder = (made.tensor(f"{side}.embed_tokens.weight") for side in ("encoder", "decoder"))
    assert torch.allclose(encoder[5], torch.ones(SIZE)) and torch.allclose(encoder[4], torch.full((SIZE,), 3.0))
    assert decoder.abs().max() < 1
    assert "vectors for 2 of 9 src tokens, 7 without" in caplog.text


def test_a_language_model_takes_vectors_of_either_side(corpus: Path) -> None:
    path = vectors(corpus, "two")
    for option in ("src_embeddings", "tgt_embeddings", "both_embeddings"):
        architecture = {**job(corpus).architecture.model_dump(exclude_unset=True), "encoder_layers": 0}
        made = run(
            corpus,
            option,
            1,
            architecture=architecture,
            embeddings={option: path},
            optimizer=STILL,
            run={"model_task": "lm"},
        )
        assert torch.allclose(made.tensor("decoder.embed_tokens.weight")[5], torch.ones(SIZE))


def test_vectors_serve_the_new_tokens_of_update_vocab_only(corpus: Path) -> None:
    old = run(corpus, "old", 1)
    path = vectors(corpus, "six", "one")
    new = run(corpus, "new", 1, **updated(corpus), embeddings={"both_embeddings": path})
    table = new.tensor("decoder.embed_tokens.weight")
    assert torch.allclose(table[5], torch.ones(SIZE))
    assert torch.allclose(table[6], old.tensor("decoder.embed_tokens.weight")[4], atol=1e-6)
    with pytest.raises(ConfigError, match="both_embeddings must be left out here"):
        run(corpus, "more", 2, run={"train_from": str(old.path)}, embeddings={"both_embeddings": path})


def test_vectors_of_another_width_are_refused(corpus: Path) -> None:
    path = vectors(corpus, "two", width=8)
    with pytest.raises(DataError, match=r"as wide as hidden_size, 16, but those of .*vectors\.txt have 8 values"):
        run(corpus, "new", 1, embeddings={"tgt_embeddings": path})


def test_a_broken_line_of_vectors_is_named(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("a 1 2\nb 1 2\nc 1 x\n")
    with pytest.raises(DataError, match=r"line 3 of .*v\.txt"):
        list(read_vectors(tmp_path / "v.txt", wanted={"c"}, width=2, word2vec=False))
    with pytest.raises(DataError, match="must begin with its two sizes"):
        list(read_vectors(tmp_path / "v.txt", wanted={"c"}, width=2, word2vec=True))


def test_frozen_tables_do_not_move(corpus: Path) -> None:
    path = vectors(corpus, *WORDS)
    embeddings = {"both_embeddings": path, "freeze_word_vecs_enc": True}
    made = run(corpus, "new", 1, embeddings=embeddings, optimizer={"learning_rate": 0.1})
    encoder, decoder = (made.tensor(f"{side}.embed_tokens.weight")[4:] for side in ("encoder", "decoder"))
    wanted = torch.tensor([[float(n + 1)] * SIZE for n in range(5)])
    assert torch.equal(encoder, wanted) and not torch.allclose(decoder, wanted, atol=1e-3)
