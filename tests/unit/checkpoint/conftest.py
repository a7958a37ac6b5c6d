from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.load import expected_shapes
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, SpecialTokens
from onmt_llm.config.model import ModelConfig
from onmt_llm.text.vocab import Vocab

TINY = ModelConfig(
    decoder_layers=2,
    vocab_size=20,
    hidden_size=16,
    heads=4,
    kv_heads=2,
    ffn_size=24,
    ffn_gated=True,
    activation="silu",
    norm="rmsnorm",
    position="rotary",
)

MakeModel = Callable[..., Checkpoint]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a checkpoint with random weights under the temporary directory."""

    def make(name: str = "base", *, seed: int = 0, model: ModelConfig = TINY, shard_size: str = "5GB") -> Checkpoint:
        generator = torch.Generator().manual_seed(seed)
        tokens = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(model.vocab_size - 3))]
        with CheckpointWriter(tmp_path / name, CheckpointConfig(model=model), shard_size=shard_size) as writer:
            for tensor, shape in expected_shapes(model).items():
                writer.add(tensor, torch.randn(shape, generator=generator))
            Vocab(tokens, SpecialTokens()).write(writer.directory / "vocab.txt")
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
