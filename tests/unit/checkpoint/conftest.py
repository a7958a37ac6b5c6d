"""Small checkpoints and adapters for the tests of the checkpoint package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, SpecialTokens
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.text.vocab import Vocab

TINY = tiny.llama(vocab_size=20, hidden_size=16, ffn_size=24)

MakeModel = Callable[..., Checkpoint]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a checkpoint with random weights under the temporary directory."""

    def make(name: str = "base", *, seed: int = 0, model: ModelConfig = TINY, shard_size: str = "5GB") -> Checkpoint:
        generator = torch.Generator().manual_seed(seed)
        with CheckpointWriter(tmp_path / name, CheckpointConfig(model=model), shard_size=shard_size) as writer:
            for tensor, shape in parameter_shapes(model).items():
                writer.add(tensor, torch.randn(shape, generator=generator))
            Vocab(tiny.tokens(model.vocab_size, "t"), SpecialTokens()).write(writer.directory / "vocab.txt")
        return Checkpoint.open(tmp_path / name)

    return make


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeModel:
    """Writes an adapter for a checkpoint, with random A and B."""

    def make(base: Checkpoint, name: str = "adapter", *, embedding: bool = False) -> Checkpoint:
        generator = torch.Generator().manual_seed(1)
        spec = AdapterSpec(
            rank=2,
            alpha=16,
            layers=["q_proj", "o_proj"],
            embedding=embedding,
            base=str(base.path),
            base_fingerprint=base.fingerprint,
        )
        config = base.config.model_copy(update={"adapter": spec, "template": "alpaca"})
        with CheckpointWriter(tmp_path / name, config) as writer:
            for weight in base.model_names():
                layer = weight.removesuffix(".weight")
                shape = base.shape(weight)
                if layer.endswith("embed_tokens"):
                    shape = shape[::-1]
                if layer.endswith((*spec.layers, "embed_tokens" if embedding else "-")):
                    writer.add(f"{layer}.lora_a", torch.randn(2, shape[1], generator=generator))
                    writer.add(f"{layer}.lora_b", torch.randn(shape[0], 2, generator=generator))
            writer.add_file(base.path / "vocab.txt", "vocab.txt")
        return Checkpoint.open(tmp_path / name)

    return make
