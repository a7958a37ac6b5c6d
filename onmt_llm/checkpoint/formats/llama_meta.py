"""Read Meta's original LLaMA files: consolidated.00.pth ..., params.json and tokenizer.model (SentencePiece, tiktoken).

Weights are sharded for tensor parallelism: by rows of wq, wk, wv, w1, w3 and output, by columns of wo and w2, by
columns (LLaMA 1 and 2) or rows (LLaMA 3) of the embedding. Rotary pairs are interleaved.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from onmt_llm.checkpoint.files.torch_pickle import TorchTensors
from onmt_llm.checkpoint.formats.byte_level_bpe import LLAMA3_ENDS, is_tiktoken
from onmt_llm.checkpoint.formats.imported import ImportedModel, ImportedTokenizer, ImportOptions
from onmt_llm.checkpoint.formats.ops import Chain, InterleavedRotary, Op, Replicated, Shards
from onmt_llm.checkpoint.formats.rules import Rule, check_sizes, per_layer, rule
from onmt_llm.checkpoint.formats.tokenizer_files import (
    NO_TOKENIZER,
    SENTENCEPIECE_FILE,
    from_huggingface,
    from_sentencepiece,
    read_json,
    without_tokenizer,
)
from onmt_llm.config.model import ModelConfig, RopeConfig
from onmt_llm.errors import CheckpointError

IGNORE = ("*/rope.freqs",)


class ShardedTensors:
    """The tensors of all shards; a tensor of shard 1 is named `1/<name>`."""

    def __init__(self, shards: Sequence[TorchTensors]) -> None:
        self.shards = list(shards)

    def names(self) -> list[str]:
        return [f"{number}/{name}" for number, shard in enumerate(self.shards) for name in shard.names()]

    def shape(self, name: str) -> tuple[int, ...]:
        shard, _, plain = name.partition("/")
        return self.shards[int(shard)].shape(plain)

    def dtype(self, name: str) -> torch.dtype:
        shard, _, plain = name.partition("/")
        return self.shards[int(shard)].dtype(plain)

    def tensor(self, name: str) -> torch.Tensor:
        shard, _, plain = name.partition("/")
        return self.shards[int(shard)].tensor(plain)


def rules(config: ModelConfig, count: int, embedding_dim: int) -> list[Rule]:
    """Weight-name rules for `count` shards; the embedding is sharded along `embedding_dim`."""

    def sharded(name: str) -> list[str]:
        return [f"{shard}/{name}.weight" for shard in range(count)]

    rows, columns, same = Shards(count, 0), Shards(count, 1), Replicated(count)
    rotary: Op = Chain((rows, InterleavedRotary(config.size_per_head)))
    table = [
        rule("decoder.embed_tokens.weight", sharded("tok_embeddings"), Shards(count, embedding_dim)),
        rule("decoder.layers.{i}.attn_norm.weight", sharded("layers.{i}.attention_norm"), same),
        rule("decoder.layers.{i}.self_attn.q_proj.weight", sharded("layers.{i}.attention.wq"), rotary),
        rule("decoder.layers.{i}.self_attn.k_proj.weight", sharded("layers.{i}.attention.wk"), rotary),
        rule("decoder.layers.{i}.self_attn.v_proj.weight", sharded("layers.{i}.attention.wv"), rows),
        rule("decoder.layers.{i}.self_attn.o_proj.weight", sharded("layers.{i}.attention.wo"), columns),
        rule("decoder.layers.{i}.mlp_norm.weight", sharded("layers.{i}.ffn_norm"), same),
        rule("decoder.layers.{i}.mlp.gate_proj.weight", sharded("layers.{i}.feed_forward.w1"), rows),
        rule("decoder.layers.{i}.mlp.down_proj.weight", sharded("layers.{i}.feed_forward.w2"), columns),
        rule("decoder.layers.{i}.mlp.up_proj.weight", sharded("layers.{i}.feed_forward.w3"), rows),
        rule("decoder.norm.weight", sharded("norm"), same),
        rule("lm_head.weight", sharded("output"), rows),
    ]
    return per_layer(table, config.decoder_layers)


def open_llama_meta(model_dir: Path, options: ImportOptions) -> ImportedModel:
    """Open a directory with consolidated.NN.pth and params.json.

    Args:
        model_dir: The directory.
        options: The tokeniser is tokenizer.model beside the weights or one directory up, if none is named. A vocabulary
            is refused: the format has none.

    Raises:
        CheckpointError: Shards or settings are missing or don't fit.
    """
    if options.vocab_file is not None:
        raise CheckpointError(
            "A Meta LLaMA model takes its vocabulary from its tokeniser; -vocab_file must not be given."
        )
    files = shard_files(model_dir)
    numbers = [int(file.stem.split(".")[1]) for file in files]
    if numbers != list(range(len(files))):
        raise CheckpointError(
            f"The shards in {model_dir} must be numbered 00, 01 ... without a gap, but are {numbers}."
        )
    params = read_json(model_dir / "params.json")
    source = ShardedTensors([TorchTensors.open([file]) for file in files])
    config, embedding_dim = _config(params, source)
    check_sizes(config, source, model_dir, rows=False)
    return ImportedModel(
        origin=f"Meta LLaMA, {model_dir.name}",
        model=config,
        source=source,
        rules=rules(config, len(files), embedding_dim),
        ignore=IGNORE,
        tokenizer=_tokenizer(model_dir, options.tokenizer_model, config.vocab_size),
    )


def shard_files(model_dir: Path) -> list[Path]:
    """The files consolidated.NN.pth of a directory, in order."""
    return sorted(
        file for file in model_dir.glob("consolidated.*.pth") if re.fullmatch(r"consolidated\.\d+\.pth", file.name)
    )


def _config(params: dict[str, Any], source: ShardedTensors) -> tuple[ModelConfig, int]:
    """The architecture, with sizes taken from the tensors, and the dimension along which the embedding is sharded."""
    missing = [key for key in ("dim", "n_layers", "n_heads") if not isinstance(params.get(key), int) or params[key] < 1]
    if missing:
        raise CheckpointError(f"params.json must have {', '.join(missing)} as whole numbers of at least 1.")
    count, dim, heads = len(source.shards), params["dim"], params["n_heads"]
    here = set(source.names())
    sizes = {}
    for key in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if f"0/{key}" not in here or len(source.shape(f"0/{key}")) != 2:
            raise CheckpointError(f"The first shard must hold {key} as a matrix, but does not.")
        sizes[key] = source.shape(f"0/{key}")
    embedding_rows, embedding_columns = sizes["tok_embeddings.weight"]
    embedding_dim = 1 if embedding_columns * count == dim else 0
    kv_heads = params.get("n_kv_heads") or heads
    config = ModelConfig(
        decoder_layers=params["n_layers"],
        vocab_size=embedding_rows if embedding_dim else embedding_rows * count,
        hidden_size=dim,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        ffn_size=sizes["layers.0.feed_forward.w1.weight"][0] * count,
        ffn_gated=True,
        activation="silu",
        norm="rmsnorm",
        norm_eps=params.get("norm_eps", 1e-5),
        position="rotary",
        max_position=params.get("max_seq_len", 2048),
        rope=_rope(params),
        tie_embeddings="0/output.weight" not in here,
    )
    return config, embedding_dim


def _rope(params: dict[str, Any]) -> RopeConfig:
    """Meta's params.json only says whether LLaMA 3.1 scaling is used; its constants are in Meta's code (model.py)."""
    theta = float(params.get("rope_theta", 10000.0))
    if not params.get("use_scaled_rope", False):
        return RopeConfig(theta=theta)
    return RopeConfig(theta=theta, scaling="llama3", factor=float(params.get("rope_scaling_factor", 8.0)))


def _tokenizer(model_dir: Path, tokenizer_model: Path | None, rows: int) -> ImportedTokenizer:
    if tokenizer_model == NO_TOKENIZER:
        return without_tokenizer(rows)
    if tokenizer_model is not None and tokenizer_model.suffix == ".json":
        return from_huggingface(tokenizer_model.parent, rows=rows, tokenizer_model=tokenizer_model)
    beside = [model_dir / SENTENCEPIECE_FILE, model_dir.parent / SENTENCEPIECE_FILE]
    file = tokenizer_model or next((f for f in beside if f.is_file()), None)
    if file is None:
        raise CheckpointError(
            f"There is no {SENTENCEPIECE_FILE} in {model_dir} or above it.",
            hint="give it with -tokenizer_model; -tokenizer_model none converts the weights alone",
        )
    if not (file.is_file() and is_tiktoken(file)):
        return from_sentencepiece(file, rows=rows)
    imported = from_huggingface(file.parent, rows=rows, tokenizer_model=file)
    imported.specials = imported.specials.model_copy(update={"eos": LLAMA3_ENDS[0]})
    imported.stop_tokens = list(LLAMA3_ENDS[1:])
    return imported
