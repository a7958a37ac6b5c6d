"""Write OpenNMT-py 3.5 checkpoints: the rules of `formats.opennmt.rules`, applied backwards.

OpenNMT-py has fewer settings for a model and stores what we leave implicit. `materialized` is the same model with every
bias (zeros), every copy of a shared matrix and every position table as a tensor; `Layout` holds the factors that one
side keeps in its weights and the other in its code. A model that cannot be expressed is refused, with every reason.

The options are an `argparse.Namespace`, because OpenNMT-py reads nothing else. It is the only pickle that this package
writes (docs/decisions/008-one-pickle.md).
"""

from __future__ import annotations

import math
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from onmt_llm.atomic import atomic_file, check_output_file
from onmt_llm.checkpoint.export_guard import WITH_DECODER, anything, obstacles, open_for_export, where, without_experts
from onmt_llm.checkpoint.files.safetensors import ShardedWriter
from onmt_llm.checkpoint.files.torch_state_dict import save_torch
from onmt_llm.checkpoint.formats.opennmt.options import (
    ACTIVATIONS,
    HALVES,
    INTERLEAVED,
    MAX_POSITION,
    POSITIONS,
    TABLES,
)
from onmt_llm.checkpoint.formats.opennmt.rules import Layout, rules
from onmt_llm.checkpoint.formats.opennmt.text import text_obstacles, text_options, tokenizer_files
from onmt_llm.checkpoint.formats.opennmt.vocab import opennmt_vocab
from onmt_llm.checkpoint.formats.ops import Identity, InterleavedRotary, Op, Scale
from onmt_llm.checkpoint.formats.rules import apply
from onmt_llm.checkpoint.load import resolve_dtype
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import parameter_shapes

WeightsFormat = Literal["pytorch", "safetensors"]

EXPRESSIBLE = {
    **anything(
        *("encoder_layers", "vocab_size", "src_vocab_size", "hidden_size", "heads", "kv_heads", "ffn_size"),
        *("ffn_gated", "norm", "norm_eps", "norm_bias", "position", "rope.theta", "rope.rotary_dim", "sinusoid"),
        *("relative_positions", "relative_buckets", "relative_max_distance", "relative_shared", "parallel_residual"),
        *("shared_norm", "scale_attention", "attn_bias", "attn_out_bias", "ffn_bias", "lm_head_bias"),
        *("scale_embeddings", "scale_logits", "feat_merge", "tie_embeddings", "share_embeddings", "dtype"),
    ),
    **WITH_DECODER,
    **without_experts(", and the export to OpenNMT-py writes no experts"),
    "activation": lambda value, config: (
        None
        if (value, config.ffn_gated) in ACTIVATIONS.values()
        else f" with ffn_gated: {str(config.ffn_gated).lower()}"
    ),
    "max_position": where(lambda config: config.position != "learned" or config.max_position <= MAX_POSITION),
    "sliding_window": where(lambda config: config.sliding_window != 1),
    "src_features": where(
        lambda config: config.feat_merge == "sum" or len({feature.size for feature in config.src_features}) < 2,
        ", but all must have one width (feat_vec_size)",
    ),
}
"""What OpenNMT-py can express, as an option or in the weights."""


def export_opennmt(
    checkpoint: Checkpoint | str | Path,
    output: str | Path,
    *,
    format: WeightsFormat = "pytorch",
    dtype: Dtype | None = None,
    shard_size: str | int = "5GB",
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint as a file that OpenNMT-py 3.5 loads to translate or to continue training.

    Args:
        checkpoint: A whole model; merge an adapter first.
        output: The `.pt` file to write; the ending may be omitted. The tokeniser's model is written beside it.
        format: "pytorch": weights in the file, all in memory during writing. "safetensors": weights streamed to
            `NAME.00.safetensors` ... beside it.
        dtype: "fp32", "bf16" or "fp16"; None = unchanged.
        shard_size: Bytes per safetensors file.
        overwrite: Replace files at `output`.

    Returns:
        The `.pt` file.

    Raises:
        CheckpointError: The checkpoint holds an adapter, or the output exists.
        UnsupportedError: OpenNMT-py cannot compute this model; lists every reason.
    """
    checkpoint = open_for_export(checkpoint)
    config = checkpoint.config.model
    found = [*obstacles(config, EXPRESSIBLE), *text_obstacles(checkpoint)]
    if found:
        raise UnsupportedError(f"OpenNMT-py cannot compute this model ({', '.join(found)}).")
    file = Path(output) if Path(output).suffix == ".pt" else Path(f"{output}.pt")
    check_output_file(file, overwrite=overwrite)
    vocab = opennmt_vocab(checkpoint)
    tokenizers = tokenizer_files(checkpoint, file)
    values = {**model_options(config), **text_options(checkpoint, vocab, tokenizers), **_alignment(checkpoint)}
    options = Namespace(**values)
    content: dict[str, Any] = {"vocab": vocab, "opt": options}
    stream = ((name, tensor.to(_dtype_of(name, dtype, config))) for name, tensor in _tensors(checkpoint))
    file.parent.mkdir(parents=True, exist_ok=True)
    sidecars = [f for f in file.parent.glob(f"{file.stem}.*.safetensors") if f.is_file()]
    for sidecar in sidecars:
        check_output_file(sidecar, overwrite=overwrite)
    parts: list[Path] = []
    if format == "safetensors":
        parts = _write_safetensors(stream, file, shard_size)
    else:
        tensors = dict(stream)
        head = {name: tensors.pop(f"generator.{name}") for name in ("weight", "bias")}
        content = {"model": tensors, "generator": head, **content}
    with atomic_file(file) as temporary:
        save_torch(content, temporary)
    for sidecar in set(sidecars) - set(parts):  # of the model that is replaced, once it is
        sidecar.unlink()
    for source, target in tokenizers.values():
        with atomic_file(target) as temporary:
            temporary.write_bytes(source.read_bytes())
    logger.info("%s -> %s (OpenNMT-py 3.5)", checkpoint.path, file)
    return file


def materialized(config: ModelConfig) -> ModelConfig:
    """The same model with the tensors that OpenNMT-py stores: no shared matrices, all biases or none."""
    biased = config.attn_bias or config.attn_out_bias
    changes: dict[str, Any] = {
        "norm_bias": True,
        "attn_bias": biased,
        "attn_out_bias": biased,
        "lm_head_bias": True,
        "tie_embeddings": False,
        "share_embeddings": False,
        "relative_shared": False,
    }
    if _is_absolute(config):
        changes |= {"position": "learned", "max_position": MAX_POSITION}
    return config.model_copy(update=changes)


def _is_absolute(config: ModelConfig) -> bool:
    return config.position in ("sinusoidal", "learned")


def layout_for(config: ModelConfig) -> Layout:
    """Interleaved sines and cosines, rotary pairs in halves (`rotary_interleave: false`), factors in the weights."""
    width, root = config.hidden_size, math.sqrt(config.hidden_size)
    theirs, ours = root if _is_absolute(config) else 1.0, root if config.scale_embeddings else 1.0
    return Layout(
        hidden=InterleavedRotary(width) if _sinusoid(config) == INTERLEAVED else Identity(),
        embedding=_scale(theirs / ours),
        query=_scale(1.0 if config.scale_attention else config.size_per_head**-0.5),
        head=_scale(root if config.scale_logits else 1.0),
    )


def _scale(factor: float) -> Op:
    return Identity() if factor == 1.0 else Scale(factor)


def _sinusoid(config: ModelConfig) -> object:
    """The kind of sinusoidal table to write; None = no table."""
    if config.position != "sinusoidal":
        return None
    if config.sinusoid in TABLES:
        return TABLES[config.sinusoid]
    # Concatenated features occupy dimensions of the residual stream, so its order must not change.
    return HALVES if config.src_features and config.feat_merge == "concat" else INTERLEAVED


class _MaterializedTensors:
    """The tensors of the `materialized` model under our names."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config.model
        self._here = set(checkpoint.model_names())
        self._shapes = parameter_shapes(materialized(self._config))

    def names(self) -> list[str]:
        return sorted(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        stack, _, rest = name.partition(".")
        if rest == "embed_positions.weight":
            return self._positions(name)
        if name in self._here:
            return self._checkpoint.tensor(name)
        if name.endswith(".bias"):
            return torch.zeros(self._shapes[name], dtype=resolve_dtype(None, self._config.dtype))
        if name.endswith(".relative_bias.weight"):
            return self._checkpoint.tensor(f"{stack}.relative_bias.weight")
        assert name in ("encoder.embed_tokens.weight", "lm_head.weight"), name
        return self._checkpoint.tensor("decoder.embed_tokens.weight")

    def _positions(self, name: str) -> torch.Tensor:
        config = self._config
        if config.position == "sinusoidal":
            return TABLES.get(config.sinusoid, HALVES).table(MAX_POSITION, config.hidden_size)
        table_PD = self._checkpoint.tensor(name)
        return torch.nn.functional.pad(table_PD, (0, 0, 0, MAX_POSITION - table_PD.shape[0]))


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """OpenNMT-py's tensors, one at a time."""
    config = checkpoint.config.model
    table = [one.reversed for one in rules(materialized(config), layout_for(config))]
    return apply(table, _MaterializedTensors(checkpoint), None, what=str(checkpoint.path))


def _dtype_of(name: str, dtype: Dtype | None, config: ModelConfig) -> torch.dtype:
    """The type to store a tensor in; position tables stay in float32."""
    is_table = name.endswith(POSITIONS) and config.position == "sinusoidal"
    return torch.float32 if is_table else resolve_dtype(dtype, config.dtype)


def _write_safetensors(stream: Iterator[tuple[str, torch.Tensor]], file: Path, shard_size: str | int) -> list[Path]:
    """Write `NAME.00.safetensors` ... beside `file`; they get their names when all are complete."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        writer = ShardedWriter(Path(folder), shard_size)
        for name, tensor in stream:
            writer.add(name, tensor)
            del tensor  # before the next one is read
        writer.close()
        shards = sorted(Path(folder).glob("*.safetensors"))
        return [shard.replace(file.with_name(f"{file.stem}.{i:02d}.safetensors")) for i, shard in enumerate(shards)]


def model_options(config: ModelConfig) -> dict[str, Any]:
    """The options that OpenNMT-py needs to build the model and to continue its training."""
    kind = "transformer_lm" if config.is_decoder_only else "transformer"
    names = {words: name for name, words in ACTIVATIONS.items()}
    relative = {
        "shaw": config.relative_positions,
        "t5": config.relative_max_distance,
        "rotary": -1,
        "alibi": -2,
    }.get(config.position, 0)
    layout = layout_for(config)
    same_matrix = layout.embedding == layout.head == Identity()
    feature_size = config.src_features[0].size if config.src_features else -1
    concat = config.feat_merge == "concat"
    return {
        "model_task": "lm" if config.is_decoder_only else "seq2seq",
        "model_type": "text",
        "encoder_type": kind,
        "decoder_type": kind,
        "layers": -1,
        "enc_layers": config.encoder_layers or config.decoder_layers,
        "dec_layers": config.decoder_layers,
        "hidden_size": config.hidden_size,
        "enc_hid_size": config.hidden_size,
        "dec_hid_size": config.hidden_size,
        "word_vec_size": -1 if config.src_features and concat else config.hidden_size,
        "src_word_vec_size": config.src_token_size,
        "tgt_word_vec_size": config.hidden_size,
        "heads": config.heads,
        "num_kv": 0 if config.num_kv_heads == config.heads else config.num_kv_heads,
        "multiquery": False,
        "transformer_ff": config.ffn_size,
        "pos_ffn_activation_fn": names[config.activation, config.ffn_gated],
        "layer_norm": "rms" if config.norm == "rmsnorm" else "standard",
        "norm_eps": config.norm_eps,
        "self_attn_type": "scaled-dot",
        "position_encoding": _is_absolute(config),
        "position_encoding_type": "SinusoidalConcat"
        if _sinusoid(config) in TABLES.values()
        else "SinusoidalInterleaved",
        "max_relative_positions": relative,
        "relative_positions_buckets": config.relative_buckets if config.position == "t5" else 0,
        "rotary_interleave": False,
        "rotary_theta": config.rope.theta,
        "rotary_dim": config.rope.rotary_dim or 0,
        # OpenNMT-py counts the tokens before the current one; 0 = all.
        "sliding_window": config.sliding_window - 1 if config.sliding_window else 0,
        "parallel_residual": config.parallel_residual,
        "shared_layer_norm": config.shared_norm,
        "add_qkvbias": config.attn_bias or config.attn_out_bias,
        "add_ffnbias": config.ffn_bias,
        "share_embeddings": config.share_embeddings,
        "share_decoder_embeddings": config.tie_embeddings and same_matrix,
        "n_src_feats": len(config.src_features),
        "feat_merge": config.feat_merge,
        "feat_vec_size": feature_size if concat else -1,
        "feat_vec_exponent": -1.0 if concat and config.src_features else 0.7,
        "model_dtype": "fp16" if config.dtype == "fp16" else "fp32",
        **_UNUSED,
    }


_UNUSED: dict[str, Any] = {
    "optim": "adam",
    "dropout": [0.0],
    "attention_dropout": [0.0],
    "dropout_steps": [0],
    "freeze_word_vecs_enc": False,
    "freeze_word_vecs_dec": False,
    "freeze_encoder": False,
    "freeze_decoder": False,
    "copy_attn": False,
    "aan_useffn": False,
    "lambda_align": 0.0,
    "alignment_layer": -3,
    "alignment_heads": 0,
    "full_context_alignment": False,
    "generator_function": "softmax",
    "num_experts": 0,
    "num_experts_per_tok": 2,
    "lora_layers": [],
    "lora_embedding": False,
    "quant_layers": [],
    "quant_type": "",
    "use_ckpting": [],
    "update_vocab": False,
    "world_size": 1,
    "gpu_ranks": [],
    "parallel_mode": "data_parallel",
    "tensorboard_log_dir": "runs/onmt",
}
"""Options that OpenNMT-py reads from every checkpoint, at values without effect."""


def _alignment(checkpoint: Checkpoint) -> dict[str, Any]:
    """Options for report_align, which only encoder-decoder models have."""
    config = checkpoint.config
    if config.model.is_decoder_only:
        return {}
    names = ("alignment_layer", "alignment_heads", "full_context_alignment")
    return {name: getattr(config, name) for name in names}
