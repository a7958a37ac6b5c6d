"""Read models described by params.json: Meta's LLaMA, Mistral's own files, and what torchtune makes of Meta's.

Meta's weights are sharded for tensor parallelism: by rows of wq, wk, wv, w1, w3 and output, by columns of wo and w2, by
columns (LLaMA 1 and 2) or rows (LLaMA 3) of the embedding. Mistral's are one safetensors file, torchtune's one `.pt`
or `.bin` file, with Meta's names or its own. Rotary pairs are interleaved in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from onmt_llm.checkpoint.files.safetensors import SafetensorsSet, open_index
from onmt_llm.checkpoint.files.torch_pickle import TorchTensors
from onmt_llm.checkpoint.formats.byte_level_bpe import LLAMA3_ENDS, TEKKEN_FILE, is_tiktoken
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    HfConfig,
    Row,
    Values,
    always,
    heads,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.keys import Settings, check_keys, file_name
from onmt_llm.checkpoint.formats.imported import ImportedModel, ImportedTokenizer, ImportOptions, TypedSource
from onmt_llm.checkpoint.formats.names import decoder_rules
from onmt_llm.checkpoint.formats.ops import Chain, InterleavedRotary, Op, Replicated, Shards
from onmt_llm.checkpoint.formats.rules import Rule, check_sizes, per_layer
from onmt_llm.checkpoint.formats.tokenizer_files import (
    HUGGINGFACE_FILE,
    NO_TOKENIZER,
    SENTENCEPIECE_FILE,
    from_huggingface,
    from_sentencepiece,
    read_json,
    without_tokenizer,
)
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

PARAMS_FILE = "params.json"
_SAFETENSORS, _INDEX = "consolidated.safetensors", "consolidated.safetensors.index.json"
_META_SHARD = re.compile(r"consolidated\.\d+\.pth")
_TORCHTUNE = ("meta_model_*.pt", "torchtune_model_*.pt", "model-00001-of-00001.bin")
_TOKENIZERS = (
    *(TEKKEN_FILE, "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1"),
    *(SENTENCEPIECE_FILE, HUGGINGFACE_FILE),
)


def _read_rope(found: HfConfig) -> Values:
    """Meta's params.json only says whether LLaMA 3.1's scaling is used; its constants are in Meta's code (model.py).

    Mistral's code has had more than one default of the base.
    """
    if found.get("rope_theta") is None and "hidden_dim" in found and found.get("sliding_window") is None:
        raise CheckpointError(f"{file_name(found)} must have `rope_theta`, but does not.")
    rope = RopeConfig(theta=float(found.get("rope_theta") or 10000.0))
    if found.get("use_scaled_rope"):
        factor = float(found.get("rope_scaling_factor") or 8.0)
        rope = rope.model_copy(update={"scaling": "llama3", "factor": factor})
    return {"position": "rotary", "rope": rope}


def _read_window(found: HfConfig) -> Values:
    size = found.get("sliding_window")
    if isinstance(size, list):
        raise UnsupportedError(f"All layers must have the same sliding window, but {file_name(found)} has {size}.")
    return {"sliding_window": size}


ROWS = (
    setting("decoder_layers", "n_layers"),
    heads(hidden="dim", count="n_heads", kv="n_kv_heads", head_dim="head_dim"),
    setting("norm_eps", "norm_eps", default=1e-5),
    setting("max_position", "max_position_embeddings", "max_seq_len", default=2048),
    Row(("rope_theta", "use_scaled_rope", "rope_scaling_factor"), _read_rope, lambda config: {}),
    Row(("sliding_window",), _read_window, lambda config: {}),
    always(norm="rmsnorm", ffn_gated=True, activation="silu"),
    must_be(moe=None, moe_args=None, vision_encoder=None, vision_chunk_size=None, quantization=None, yarn=None),
)
_HARMLESS = (
    *("vocab_size", "hidden_dim", "multiple_of", "ffn_dim_multiplier", "max_batch_size", "model_type", "causal"),
    *("tied_embeddings", "vision_num_cross_attention_layers", "use_biases"),
)


@dataclass(frozen=True)
class NumberedTensors:
    """The tensors of all shards; a tensor of shard 1 is named `1/<name>`."""

    shards: Sequence[TypedSource]

    def names(self) -> list[str]:
        return [f"{number}/{name}" for number, shard in enumerate(self.shards) for name in shard.names()]

    def shape(self, name: str) -> tuple[int, ...]:
        shard, plain = self._find(name)
        return shard.shape(plain)

    def dtype(self, name: str) -> torch.dtype:
        shard, plain = self._find(name)
        return shard.dtype(plain)

    def tensor(self, name: str) -> torch.Tensor:
        shard, plain = self._find(name)
        return shard.tensor(plain)

    def _find(self, name: str) -> tuple[TypedSource, str]:
        number, _, plain = name.partition("/")
        return self.shards[int(number)], plain


def find_params_json(path: Path) -> list[Path]:
    """The files of weights at `path`, a file or a directory with params.json; empty if it has none.

    Raises:
        CheckpointError: There are several models.
    """
    if path.is_file():
        return [path] if (path.parent / PARAMS_FILE).is_file() and _is_weights(path) else []
    if not (path / PARAMS_FILE).is_file():
        return []
    shards = sorted(file for file in path.glob("consolidated.*.pth") if _META_SHARD.fullmatch(file.name))
    if shards:
        return shards
    for name in (_INDEX, _SAFETENSORS):
        if (path / name).is_file():
            return [path / name]
    files = sorted(file for pattern in _TORCHTUNE for file in path.glob(pattern))
    if len(files) > 1:
        raise CheckpointError(
            f"{path} must hold one model, but holds {', '.join(file.name for file in files)}.", hint="name the file"
        )
    return files


def _is_weights(file: Path) -> bool:
    return any(file.match(pattern) for pattern in _TORCHTUNE) or file.name in (_SAFETENSORS, "consolidated.00.pth")


def open_params_json(path: Path, options: ImportOptions) -> ImportedModel:
    """Open a directory with params.json and weights.

    Args:
        path: The directory, or the file of weights in it.
        options: The tokeniser is that beside the weights or one directory up, if none is named. A vocabulary is
            refused: the format has none.

    Raises:
        CheckpointError: Shards or settings are missing or don't fit.
        UnsupportedError: The model computes something that ours do not.
    """
    if options.vocab_file is not None:
        raise CheckpointError(
            "A model with params.json takes its vocabulary from its tokeniser; -vocab_file must not be given."
        )
    files = find_params_json(path)
    if not files:
        raise CheckpointError(f"{path} must hold {PARAMS_FILE} and weights beside it, but does not.")
    folder = files[0].parent
    found = Settings(read_json(folder / PARAMS_FILE), file=PARAMS_FILE)
    known = [*(key for row in ROWS for key in row.keys), *_HARMLESS]
    check_keys(found, known, "LLaMA and Mistral", ignore_unknown=options.ignore_unknown)
    source = NumberedTensors(_open_shards(files))
    config, embedding_dim = _config(found, source)
    check_sizes(config, source, folder, rows=False)
    return ImportedModel(
        origin=f"{'Mistral' if 'hidden_dim' in found else 'Meta LLaMA'}, {folder.name}",
        model=config,
        source=source,
        rules=rules(config, source, embedding_dim),
        ignore=("*/rope.freqs",),
        tokenizer=_tokenizer(folder, options.tokenizer_model, config.vocab_size),
    )


def _open_shards(files: Sequence[Path]) -> list[TypedSource]:
    first = files[0]
    if first.name == _INDEX:
        return [open_index(first)]
    if first.suffix == ".safetensors":
        return [SafetensorsSet(first.parent, [first.name])]
    numbers = [int(file.stem.split(".")[1]) for file in files if _META_SHARD.fullmatch(file.name)]
    if numbers != list(range(len(numbers))):
        raise CheckpointError(
            f"The shards in {first.parent} must be numbered 00, 01 ... without a gap, but are {numbers}."
        )
    return [TorchTensors.open([file]) for file in files]


def _format(source: TypedSource) -> str:
    return "torchtune" if "0/layers.0.attn.q_proj.weight" in source.names() else "meta"


def rules(config: ModelConfig, source: NumberedTensors, embedding_dim: int) -> list[Rule]:
    """Weight-name rules for all shards; the embedding is sharded along `embedding_dim`."""
    count, format = len(source.shards), _format(source)
    dims = {"embed_tokens": embedding_dim, "o_proj": 1, "down_proj": 1}
    order = InterleavedRotary(config.size_per_head)

    def sharded(one: Rule) -> Rule:
        (ours,), (theirs,) = one.ours, one.theirs
        module = ours.split(".")[-2]
        if module.endswith("norm"):
            op: Op = Replicated(count)
            # torchtune calls the weight of a norm its scale
            theirs = theirs.replace(".weight", ".scale") if format == "torchtune" else theirs
        else:
            op = Shards(count, dims.get(module, 0))
        if module in ("q_proj", "k_proj"):
            op = Chain((op, order))
        return Rule(one.ours, tuple(f"{shard}/{theirs}" for shard in range(count)), op)

    return per_layer([sharded(one) for one in decoder_rules(format)], config.decoder_layers)


def one_shard_rules(config: ModelConfig) -> list[Rule]:
    """The rules of Meta's names for a model in one shard, whose tensors have no number."""
    order = InterleavedRotary(config.size_per_head)
    return per_layer(decoder_rules("meta", {"q_proj": order, "k_proj": order}), config.decoder_layers)


def _config(found: HfConfig, source: NumberedTensors) -> tuple[ModelConfig, int]:
    """The architecture, with sizes taken from the tensors, and the dimension along which the embedding is sharded."""
    missing = [key for key in ("dim", "n_layers", "n_heads") if not isinstance(found.get(key), int) or found[key] < 1]
    if missing:
        raise CheckpointError(f"{PARAMS_FILE} must have {', '.join(missing)} as whole numbers of at least 1.")
    values = {name: value for row in ROWS for name, value in row.read(found).items()}
    count, here = len(source.shards), set(source.names())
    gate = {"meta": "layers.0.feed_forward.w1.weight", "torchtune": "layers.0.mlp.w1.weight"}[_format(source)]
    sizes = {}
    for key in ("tok_embeddings.weight", gate):
        if f"0/{key}" not in here or len(source.shape(f"0/{key}")) != 2:
            raise CheckpointError(f"The first shard must hold {key} as a matrix, but does not.")
        sizes[key] = source.shape(f"0/{key}")
    embedding_rows, embedding_columns = sizes["tok_embeddings.weight"]
    embedding_dim = 1 if embedding_columns * count == found["dim"] else 0
    values |= {
        "vocab_size": embedding_rows if embedding_dim else embedding_rows * count,
        "ffn_size": sizes[gate][0] * count,
        "tie_embeddings": "0/output.weight" not in here,
        "attn_bias": "0/layers.0.attention.wq.bias" in here,
    }
    return ModelConfig.model_validate(values), embedding_dim


def _tokenizer(folder: Path, chosen: Path | None, rows: int) -> ImportedTokenizer:
    if chosen == NO_TOKENIZER:
        return without_tokenizer(rows)
    beside = [place / name for place in (folder, folder.parent) for name in _TOKENIZERS]
    file = chosen or next((file for file in beside if file.is_file()), None)
    if file is None:
        raise CheckpointError(
            f"There is no {SENTENCEPIECE_FILE}, {TEKKEN_FILE} or {HUGGINGFACE_FILE} in {folder} or above it.",
            hint="give it with -tokenizer_model; -tokenizer_model none converts the weights alone",
        )
    llama3 = file.is_file() and file.suffix != ".json" and is_tiktoken(file)
    if file.suffix != ".json" and not llama3:
        return from_sentencepiece(file, rows=rows)
    imported = from_huggingface(file.parent, rows=rows, tokenizer_model=file)
    ends = LLAMA3_ENDS if llama3 else ("</s>",) if file.name == TEKKEN_FILE else ()
    if ends:  # no file says so
        imported.specials = imported.specials.model_copy(update={"eos": ends[0]})
        imported.stop_tokens = list(ends[1:])
    return imported
