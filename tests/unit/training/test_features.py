"""A task that can only be learned from source word features, from the files to the release."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.train import train
from options import train_config


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Words are copied if their second feature is `+`, and become `x` if it is `-`; the first feature means nothing."""
    rng = random.Random(1)
    lines = [[(rng.choice("abc"), rng.choice("NV"), rng.choice("+-")) for _ in range(3)] for _ in range(1500)]
    (tmp_path / "src").write_text("".join(" ".join("￨".join(word) for word in line) + "\n" for line in lines))
    (tmp_path / "tgt").write_text(
        "".join(" ".join(w if f == "+" else "x" for w, _, f in line) + "\n" for line in lines)
    )
    for name, values in (("vocab", "abcx"), ("vocab_feat0", "NV"), ("vocab_feat1", "+-")):
        (tmp_path / name).write_text("".join(f"{value}\n" for value in values))
    return tmp_path


def config(folder: Path, **changes: Any) -> TrainConfig:
    corpora: dict[str, Any] = {
        "data": {"train": {"path_src": str(folder / "src"), "path_tgt": str(folder / "tgt")}},
        "transforms": ["inferfeats"],
        "n_src_feats": 2,
        "src_feats_defaults": "N￨-",
    }
    return train_config(
        {
            "corpora": {**corpora, **changes.get("corpora", {})},
            "vocabulary": {"src_vocab": str(folder / "vocab"), "share_vocab": True, **changes.get("vocabulary", {})},
            "batching": {"batch_size": 64, "bucket_size": 512},
            "architecture": {
                "encoder_layers": 1,
                "decoder_layers": 1,
                "hidden_size": 48,
                "heads": 4,
                "ffn_size": 48,
                **changes.get("architecture", {}),
            },
            "optimizer": {"learning_rate": 0.01, "decay_method": "cosine", "warmup_steps": 20, "adam_beta2": 0.98},
            "run": {
                "save_model": str(folder / "run"),
                "seed": 7,
                "train_steps": 250,
                "save_checkpoint_steps": 250,
                "param_init_glorot": True,
                **changes.get("run", {}),
            },
            "logging": {"progress": "none"},
        }
    )


@pytest.mark.parametrize("merge", ["concat", pytest.param("sum", marks=pytest.mark.slow)])
def test_features_are_learnt_saved_and_released(corpus: Path, merge: str) -> None:
    train(config(corpus, architecture={"feat_merge": merge, "share_embeddings": merge == "sum"}))
    checkpoint = corpus / "run_step_250"
    shapes = [(f.vocab_size, f.size) for f in Checkpoint.open(checkpoint).config.model.src_features]
    assert shapes == ([(6, 48)] * 2 if merge == "sum" else [(6, 3)] * 2)
    assert release(checkpoint, corpus / "ct2", text="a b c")["verdict"] == "pass"
    for engine in (open_engine(checkpoint, device="cpu"), open_engine(corpus / "ct2", device="cpu")):
        lines = ["a￨N￨+ b￨V￨- c￨N￨+", "a￨V￨- b￨N￨+ b￨N￨+", "a b c"]
        answers = engine.generate([engine.codec.encode(line) for line in lines], GenerationConfig(max_length=8))
        assert [answer.text for (answer,) in answers] == ["a x c", "x b b", "x x x"]
        with pytest.raises(DataError, match="'b￨N' carries 1"):
            engine.codec.encode("a￨N￨+ b￨N")


def test_width_of_the_embeddings(corpus: Path) -> None:
    assert "5" in str(plan(config(corpus, vocabulary={"feat_vec_size": 5})))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"corpora": {"transforms": []}}, "must include inferfeats"),
        ({"architecture": {"share_embeddings": True}}, "feat_merge: concat must leave"),
        ({"architecture": {"encoder_layers": 0}, "run": {"model_task": "lm"}}, "src_features needs an encoder"),
        ({"corpora": {"src_feats_defaults": "N"}}, "must hold 2 values"),
    ],
)
def test_what_does_not_go_together_is_refused(corpus: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises((ConfigError, DataError, ValueError), match=named):
        train(config(corpus, **changes))
