"""Tiny models, vocabularies and checkpoints that many tests share: two layers, 32 wide, random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig, TokenizerSpec
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.transformer import Transformer
from onmt_llm.text.decoding import byte_alphabet

BASE: dict[str, Any] = {"vocab_size": 24, "hidden_size": 32, "heads": 4, "ffn_size": 48, "decoder_layers": 2}
LLAMA: dict[str, Any] = {
    "kv_heads": 2,
    "norm": "rmsnorm",
    "ffn_gated": True,
    "activation": "silu",
    "position": "rotary",
}
"""What makes a decoder LLaMA-like, with grouped-query attention."""

GATED_LM: dict[str, Any] = {
    "encoder_layers": 0,
    "decoder_layers": 2,
    "ffn_gated": True,
    "norm": "rmsnorm",
    "position": "rotary",
}
"""The section `architecture` of runs that train a gated language model."""


def config(**changes: Any) -> ModelConfig:
    """A decoder-only model with the defaults of `ModelConfig`, unless `changes` say otherwise."""
    return ModelConfig.model_validate({**BASE, **changes})


def llama(**changes: Any) -> ModelConfig:
    return config(**{**LLAMA, **changes})


def seq2seq(**changes: Any) -> ModelConfig:
    return config(**{"encoder_layers": 2, **changes})


def build(model: ModelConfig, seed: int = 0) -> Transformer:
    """The model with torch's own initial weights, in training mode."""
    torch.manual_seed(seed)
    return Transformer(model)


def token_ids(*shape: int, high: int = 40, seed: int = 1) -> Tensor:
    """Random ids from 1 to `high` - 1."""
    return torch.randint(1, high, shape, generator=torch.Generator().manual_seed(seed))


def tokens(count: int, letter: str = "w") -> list[str]:
    """The special tokens `<unk>`, `<s>`, `</s>`, then `w0`, `w1`, ..."""
    return ["<unk>", "<s>", "</s>", *(f"{letter}{i}" for i in range(count - 3))]


def write_vocab(path: Path, vocab: Sequence[str]) -> Path:
    """A vocabulary file: a token per line."""
    path.write_text("".join(f"{token}\n" for token in vocab))
    return path


def write_checkpoint(
    directory: Path,
    model: ModelConfig,
    vocab: Sequence[str] | None = None,
    *,
    src_vocab: Sequence[str] | None = None,
    seed: int = 0,
    scale: float = 0.3,
    norm_bias: float = 0.0,
    **settings: Any,
) -> Path:
    """Write a checkpoint whose random weights are large enough for confident, varied answers.

    Args:
        directory: Where it is written.
        model: Its architecture; `dtype` is that of the weights.
        vocab: Tokens; fewer than `model.vocab_size` leave rows without a token. `tokens(model.vocab_size)` by default.
        src_vocab: Tokens of a source vocabulary of its own.
        seed: Of the weights.
        scale: Standard deviation of all weights around 0, and around 1 for those of norms.
        norm_bias: Mean of the biases of norms.
        settings: Other fields of `CheckpointConfig`.

    Returns:
        `directory`.
    """
    network = build(model, seed)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[model.dtype]
    with CheckpointWriter(directory, CheckpointConfig(model=model, **settings)) as writer:
        for name, parameter in network.named_parameters():
            mean = (1.0 if name.endswith("weight") else norm_bias) if "norm" in name else 0.0
            writer.add(name, (mean + scale * torch.randn_like(parameter)).to(dtype))
        write_vocab(writer.directory / "vocab.txt", tokens(model.vocab_size) if vocab is None else vocab)
        if src_vocab is not None:
            write_vocab(writer.directory / "src_vocab.txt", src_vocab)
        for i, feature in enumerate(model.src_features):
            values = ["<unk>", *(f"f{value}" for value in range(feature.vocab_size - 1))]
            write_vocab(writer.directory / f"src_feat{i}_vocab.txt", values)
    return directory


def write_chat_model(directory: Path, template: str | None = "vicuna") -> Path:
    """Write a LLaMA-like checkpoint with random weights, a tokeniser of bytes and a chat template, or none.

    Returns:
        `directory`.
    """
    vocab = [*tokens(3), *byte_alphabet().values()]
    added = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer = {
        "added_tokens": [{"id": number, "content": token, **added} for number, token in enumerate(vocab[:3])],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: number for number, token in enumerate(vocab)}, "merges": []},
    }
    model = llama(vocab_size=len(vocab))
    spec = TokenizerSpec(kind="huggingface", file="tokenizer.json")
    network = build(model)
    with CheckpointWriter(directory, CheckpointConfig(model=model, tokenizer=spec, template=template)) as writer:
        for name, parameter in network.named_parameters():
            writer.add(name, parameter)
        writer.add_text("tokenizer.json", json.dumps(tokenizer))
        write_vocab(writer.directory / "vocab.txt", vocab)
    return directory
