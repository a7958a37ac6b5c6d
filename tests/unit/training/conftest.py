"""Tiny models and batches for the tests of training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.result import TrainResult
from onmt_llm.training.train import train
from options import train_config

VOCAB = 23
WORDS = [f"w{i}" for i in range(12)]


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_config() -> ModelConfig:
    return tiny.llama(vocab_size=VOCAB)


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Transformer:
    model = Transformer(tiny_config)
    init_weights(model, glorot=True)
    return model


@pytest.fixture
def make_batch() -> Callable[[Sequence[Sequence[int]], Sequence[int]], Batch]:
    """Rows of token ids -> a right-padded language-model batch; the first `prompts[i]` labels of row i are masked."""

    def make(rows: Sequence[Sequence[int]], prompts: Sequence[int]) -> Batch:
        length = max(map(len, rows)) + 1
        tgt = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), -100)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            tgt[i, 0] = 1
            tgt[i, 1 : len(row) + 1] = torch.tensor(row)
            labels[i, prompt : len(row) + 1] = torch.tensor([*row, 2][prompt:])
        return Batch(
            src_BS=None,
            src_mask_BS=None,
            tgt_BT=tgt,
            labels_BT=labels,
            doc_BT=None,
            num_targets=int((labels != -100).sum()),
            num_examples=len(rows),
        )

    return make


@dataclass
class CopyTask:
    """Runs on sentences that translate to themselves, by default with a tiny encoder-decoder."""

    folder: Path

    @property
    def corpora(self) -> dict[str, dict[str, str]]:
        return {
            name: {key: str(self.folder / f"{name}.{key[5:]}") for key in ("path_src", "path_tgt")}
            for name in ("train", "valid")
        }

    def config(self, name: str = "toy", **sections: dict[str, Any]) -> TrainConfig:
        base: dict[str, dict[str, Any]] = {
            "corpora": {"data": self.corpora},
            "vocabulary": {"src_vocab": str(self.folder / "vocab.txt"), "share_vocab": True},
            "batching": {"batch_size": 8, "bucket_size": 40},
            "architecture": {
                "encoder_layers": 1,
                "decoder_layers": 1,
                "hidden_size": 16,
                "heads": 2,
                "ffn_size": 24,
                "position": "sinusoidal",
            },
            "optimizer": {"learning_rate": 0.01},
            "run": {
                "save_model": str(self.folder / name),
                "seed": 7,
                "train_steps": 6,
                "save_checkpoint_steps": 3,
                **({"model_task": "lm"} if sections.get("architecture", {}).get("encoder_layers") == 0 else {}),
            },
            "logging": {"progress": "none"},
        }
        return train_config({key: {**base.get(key, {}), **sections.get(key, {})} for key in {*base, *sections}})

    def run(self, name: str = "toy", **sections: dict[str, Any]) -> TrainResult:
        return train(self.config(name, **sections))

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return dict(Checkpoint.open(self.folder / name).tensors())

    def validations(self, name: str = "toy") -> list[dict[str, Any]]:
        rows = map(json.loads, (self.folder / f"{name}_metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row["split"] == "valid"]


@pytest.fixture
def copy_task(tmp_path: Path) -> CopyTask:
    rng = random.Random(1)
    for name, count in (("train", 600), ("valid", 12)):
        lines = "".join(" ".join(rng.choices(WORDS, k=rng.randint(2, 5))) + "\n" for _ in range(count))
        (tmp_path / f"{name}.src").write_text(lines)
        (tmp_path / f"{name}.tgt").write_text(lines)
        (tmp_path / f"{name}.align").write_text(
            "".join(" ".join(f"{i}-{i}" for i in range(len(line.split()))) + "\n" for line in lines.splitlines())
        )
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return CopyTask(tmp_path)
