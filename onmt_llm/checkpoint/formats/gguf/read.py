"""Read GGUF files, llama.cpp's format, and dequantise them tensor by tensor.

For the `llama` architecture, llama.cpp interleaves the rotary pairs in q and k; for `qwen2` they are in halves, as in
Hugging Face's models. (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onmt_llm.checkpoint.formats.gguf.header import check_header
from onmt_llm.checkpoint.formats.gguf.tokenizer import read_tokenizer
from onmt_llm.checkpoint.formats.imported import ImportedModel
from onmt_llm.checkpoint.formats.ops import Identity, InterleavedRotary, Op
from onmt_llm.checkpoint.formats.rules import Rule, check_sizes, per_layer, rule
from onmt_llm.config.model import ModelConfig, RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.nn.positions import rotary_frequencies
from onmt_llm.optional import require

ARCHITECTURES = ("llama", "qwen2")
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_QUANTISED_TYPES = frozenset(
    ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
)
_PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is, or the only one (or the first part of one) in the directory `path`."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    firsts = [file for file in files if (split := _SPLIT.fullmatch(file.name)) is None or int(split[2]) == 1]
    if len(firsts) > 1:
        raise CheckpointError(
            f"{path} must hold one GGUF model, but holds {', '.join(f.name for f in firsts)}.", hint="name the file"
        )
    return firsts[0] if firsts else None


def open_gguf(path: Path, *, tokenizer_model: Path | None = None, vocab_file: Path | None = None) -> ImportedModel:
    """Open a GGUF model of the llama or qwen2 architecture.

    Args:
        path: The file, or the directory that holds it.
        tokenizer_model: Refused: the tokeniser is in the file.
        vocab_file: Refused for the same reason.

    Raises:
        CheckpointError: The file is damaged or incomplete.
        UnsupportedError: The architecture, tokeniser or rotary scaling is not supported.
    """
    if tokenizer_model is not None or vocab_file is not None:
        raise CheckpointError(
            "A GGUF file holds its own tokeniser: -tokenizer_model and -vocab_file must not be given."
        )
    file = find_gguf(path)
    if file is None:
        raise CheckpointError(f"There is no GGUF file at {path}.")
    source = GgufTensors([_open(part) for part in _parts(file)])
    config = _config(source)
    check_sizes(config, source, file)
    return ImportedModel(
        origin=f"GGUF {source.metadata['general.architecture']}, {file.name}",
        model=config,
        source=source,
        rules=rules(config, interleaved=source.metadata["general.architecture"] == "llama"),
        ignore=("rope_freqs.weight",),
        tokenizer=read_tokenizer(source.metadata, rows=config.vocab_size),
    )


@dataclass(frozen=True)
class GgufPart:
    """One file: its metadata as plain values, its tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]


def _parts(file: Path) -> list[Path]:
    split = _SPLIT.fullmatch(file.name)
    if split is None:
        return [file]
    parts = [file.with_name(f"{split[1]}-{number:05d}-of-{split[3]}.gguf") for number in range(1, int(split[3]) + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"The GGUF model {file} is split in {split[3]} files, but these are missing: {', '.join(missing)}."
        )
    return parts


def _open(file: Path) -> GgufPart:
    gguf = require("gguf", "reading a GGUF file")
    check_header(file)
    try:
        reader = gguf.GGUFReader(file)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a readable GGUF file ({error!r}).", hint="it is damaged or incomplete: copy it again"
        ) from error
    return GgufPart(metadata, tensors)


class GgufTensors:
    """The tensors of one or more GGUF files. Quantised ones are read as float32, others in their own type.

    Attributes:
        metadata: Metadata of the first file.
    """

    def __init__(self, parts: Sequence[GgufPart]) -> None:
        self.metadata = parts[0].metadata
        self._tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        types = {tensor.tensor_type.name for tensor in self._tensors.values()}
        strange = sorted(types - _PLAIN_TYPES.keys() - _QUANTISED_TYPES)
        if strange:
            raise UnsupportedError(
                f"The GGUF file holds tensors of type {', '.join(strange)}, which cannot be dequantised."
            )

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Outermost dimension first; GGUF stores the innermost first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> torch.dtype:
        return _PLAIN_TYPES.get(self._tensors[name].tensor_type.name, torch.float32)

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        gguf = require("gguf", "reading a GGUF file")
        if tensor.tensor_type.name in ("F32", "F16"):
            values = torch.from_numpy(tensor.data.copy())
        else:
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        return values.reshape(self.shape(name)).to(self.dtype(name))


def rules(config: ModelConfig, *, interleaved: bool) -> list[Rule]:
    """Weight-name rules; `interleaved`: how rotary pairs are stored in q and k."""
    rotary: Op = InterleavedRotary(config.size_per_head, config.rope.rotary_dim) if interleaved else Identity()
    table = [
        rule("decoder.embed_tokens.weight", "token_embd.weight"),
        rule("decoder.layers.{i}.attn_norm.weight", "blk.{i}.attn_norm.weight"),
        rule("decoder.layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", rotary),
        rule("decoder.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", rotary),
        rule("decoder.layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", rotary),
        rule("decoder.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", rotary),
        rule("decoder.layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight"),
        rule("decoder.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias"),
        rule("decoder.layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight"),
        rule("decoder.layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias"),
        rule("decoder.layers.{i}.mlp_norm.weight", "blk.{i}.ffn_norm.weight"),
        rule("decoder.layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
        rule("decoder.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
        rule("decoder.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
        rule("decoder.norm.weight", "output_norm.weight"),
        rule("lm_head.weight", "output.weight"),
    ]
    return per_layer(table, config.decoder_layers)


def _config(source: GgufTensors) -> ModelConfig:
    architecture = source.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"The GGUF architecture must be one of {', '.join(ARCHITECTURES)}, but is '{architecture}'."
        )

    def value(key: str, default: Any = None) -> Any:
        found = source.metadata.get(f"{architecture}.{key}", default)
        if found is None:
            raise CheckpointError(f"The GGUF file must have the key {architecture}.{key}, but does not.")
        return found

    if value("expert_count", 0):
        raise UnsupportedError("The GGUF model is a mixture of experts, which is not supported.")
    names = set(source.names())
    if "token_embd.weight" not in names:
        raise CheckpointError("The GGUF file must hold token_embd.weight, but does not.")
    heads, hidden = int(value("attention.head_count")), int(value("embedding_length"))
    kv_heads = int(value("attention.head_count_kv", heads))
    head_dim = int(value("attention.key_length", hidden // heads))
    rotary_dim = int(value("rope.dimension_count", head_dim))
    return ModelConfig(
        decoder_layers=int(value("block_count")),
        vocab_size=source.shape("token_embd.weight")[0],
        hidden_size=hidden,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if head_dim * heads == hidden else head_dim,
        ffn_size=int(value("feed_forward_length")),
        ffn_gated=True,
        activation="silu",
        norm="rmsnorm",
        norm_eps=_decimal(value("attention.layer_norm_rms_epsilon")),
        position="rotary",
        max_position=int(value("context_length", 2048)),
        rope=_rope(source, value, None if rotary_dim == head_dim else rotary_dim, head_dim),
        attn_bias="blk.0.attn_q.bias" in names,
        attn_out_bias="blk.0.attn_output.bias" in names,
        tie_embeddings="output.weight" not in names,
    )


def _decimal(value: float) -> float:
    """The intended decimal number: GGUF stores 1e-5 as the nearest float32."""
    return float(f"{value:.7g}")


def _rope(source: GgufTensors, value: Any, rotary_dim: int | None, head_dim: int) -> RopeConfig:
    theta = _decimal(value("rope.freq_base", 10000.0))
    kind = value("rope.scaling.type", "none")
    if "rope_freqs.weight" in source.names():
        return _llama3_rope(source.tensor("rope_freqs.weight").float(), theta, rotary_dim, head_dim)
    if kind == "linear":
        return RopeConfig(
            theta=theta, rotary_dim=rotary_dim, scaling="linear", factor=_decimal(value("rope.scaling.factor"))
        )
    if kind != "none":
        raise UnsupportedError(f"Rotary scaling must be none, linear or llama3, but is '{kind}'.")
    return RopeConfig(theta=theta, rotary_dim=rotary_dim)


def _llama3_rope(divisors: torch.Tensor, theta: float, rotary_dim: int | None, head_dim: int) -> RopeConfig:
    """LLaMA 3.1's scaling: GGUF stores only the divisor of each frequency; the rest are published constants.

    Raises:
        UnsupportedError: The divisors do not follow LLaMA 3.1's formula.
    """
    rope = RopeConfig(theta=theta, rotary_dim=rotary_dim, scaling="llama3", factor=_decimal(float(divisors.max())))
    size = rotary_dim or head_dim
    cpu = torch.device("cpu")
    if divisors.shape != (size // 2,) or not torch.allclose(
        rotary_frequencies(RopeConfig(theta=theta), size, cpu) / rotary_frequencies(rope, size, cpu),
        divisors,
        rtol=1e-4,
    ):
        raise UnsupportedError(
            "The GGUF file scales rotary frequencies in another way than LLaMA 3.1 (rope_freqs.weight)."
        )
    return rope
