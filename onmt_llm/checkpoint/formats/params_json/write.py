"""Write models of LLaMA's architecture as Meta publishes them: consolidated.00.pth, params.json, tokenizer.model.

The settings are those of `ModelArgs` in Meta's code. It computes the feed-forward width from the hidden size, has no
context length in params.json, and always has an output layer of its own.
(https://github.com/meta-llama/llama-models/blob/main/models/llama3/args.py)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onmt_llm.atomic import AtomicDirectory, check_output
from onmt_llm.checkpoint.card import CardFormat, card_files
from onmt_llm.checkpoint.export_guard import Check, anything, obstacles, only, open_for_export, without_experts
from onmt_llm.checkpoint.files.torch_state_dict import write_state_dict
from onmt_llm.checkpoint.formats.huggingface.tokenizer_json import adapted, refuse_other_ids
from onmt_llm.checkpoint.formats.params_json.read import PARAMS_FILE, one_shard_rules
from onmt_llm.checkpoint.formats.rules import apply
from onmt_llm.checkpoint.formats.tokenizer_files import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, read_json
from onmt_llm.checkpoint.load import resolve_dtype
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.card import NOTHING_TO_ADD, CardOptions
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger

WEIGHTS_FILE = "consolidated.00.pth"
_HEAD, _EMBEDDING = "output.weight", "tok_embeddings.weight"
_SCALED = RopeConfig(scaling="llama3", factor=8.0)
"""The scaling whose constants are in Meta's code; only the factor can be given."""

EXPRESSIBLE: dict[str, Check] = {
    **anything("vocab_size", "hidden_size", "heads", "kv_heads", "decoder_layers", "ffn_size", "norm_eps"),
    **anything("max_position", "tie_embeddings", "dtype", "rope.theta", "rope.factor"),
    "encoder_layers": only(0),
    "norm": only("rmsnorm"),
    "position": only("rotary"),
    "activation": only("silu"),
    "ffn_gated": only(True),
    "rope.scaling": only("none", "llama3"),
    **{
        f"rope.{name}": only(getattr(_SCALED, name))
        for name in ("low_freq_factor", "high_freq_factor", "original_max_position")
    },
    **without_experts(", and Meta's format has no experts"),
}
"""What Meta's format can express."""


def export_meta(
    checkpoint: Checkpoint | str | Path,
    output: str | Path,
    *,
    dtype: Dtype | None = None,
    card: CardOptions = NOTHING_TO_ADD,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint in Meta's format, as one shard, with one tensor in memory at a time.

    A SentencePiece model is written as tokenizer.model. Meta's code for LLaMA 3 reads a tiktoken file instead, which is
    not written: tokenizer.json, which torchtune and `onmt_llm_convert` read, takes its place.

    Args:
        checkpoint: A whole model; merge an adapter first.
        output: The directory to write.
        dtype: "fp32", "bf16" or "fp16"; None = unchanged.
        card: What the model card says besides the facts in the checkpoint.
        overwrite: Replace a model at `output`.

    Raises:
        CheckpointError: The checkpoint holds an adapter, or the output exists.
        UnsupportedError: Meta's format cannot express this model; lists every reason.
    """
    check_output(Path(output), overwrite=overwrite)
    checkpoint = open_for_export(checkpoint)
    config = checkpoint.config.model
    found = obstacles(config, EXPRESSIBLE)
    if found:
        raise UnsupportedError(f"Meta's format cannot express this model ({', '.join(found)}).")
    here = set(checkpoint.model_names())
    rules = [one for one in one_shard_rules(config) if here.issuperset(one.ours)]
    stored = {one.theirs[0]: (checkpoint.shape(one.ours[0]), resolve_dtype(dtype, config.dtype)) for one in rules}
    stream = apply([one.reversed for one in rules], checkpoint, None, what=str(checkpoint.path))
    tied = {} if _HEAD in stored else {_HEAD: _EMBEDDING}
    with AtomicDirectory(output, overwrite=overwrite) as directory, directory.translated_errors():
        write_state_dict(directory.directory / WEIGHTS_FILE, stored, stream, same=tied)
        directory.add_text(PARAMS_FILE, json.dumps(_params(config), indent=1) + "\n")
        _add_tokenizer(directory, checkpoint)
        for name, text in card_files(checkpoint, Path(output), CardFormat("in Meta's format", ""), card).items():
            directory.add_text(name, text)
    return Path(output)


def _params(config: ModelConfig) -> dict[str, Any]:
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.decoder_layers,
        "n_heads": config.heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        **_feed_forward(config.hidden_size, config.ffn_size),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
    }
    if config.rope.scaling == "llama3":
        params |= {"use_scaled_rope": True, "rope_scaling_factor": config.rope.factor}
    return params


def _feed_forward(hidden: int, width: int) -> dict[str, Any]:
    """The settings from which Meta's code computes this width: two thirds of 4 x hidden, times `ffn_dim_multiplier`,
    rounded up to a multiple of `multiple_of`."""
    plain = int(2 * 4 * hidden / 3)
    multiple = next((size for size in (256, 1024, 4096) if -(-plain // size) * size == width), None)
    if multiple is not None:
        return {"multiple_of": multiple}
    return {"multiple_of": width, **({"ffn_dim_multiplier": width / plain} if plain > width else {})}


def _add_tokenizer(directory: AtomicDirectory, checkpoint: Checkpoint) -> None:
    kinds = ("sentencepiece", "huggingface")
    spec = checkpoint.config.tokenizer
    if spec.kind == "none":
        return
    if spec.kind not in kinds or spec.file is None:
        raise UnsupportedError(
            f"Meta's format has tokenisers of kind {' and '.join(kinds)}, but that of this model is '{spec.kind}'."
        )
    file, codec = checkpoint.path / spec.file, checkpoint.codec()
    if spec.kind == "sentencepiece":
        refuse_other_ids(codec.tokenizer.vocab_tokens() or [], codec)
        directory.add_file(file, SENTENCEPIECE_FILE)
    else:
        directory.add_text(HUGGINGFACE_FILE, json.dumps(adapted(read_json(file), codec), ensure_ascii=False))
        logger.warning("Meta's code does not read %s: give it the tokenizer.model of the base model.", HUGGINGFACE_FILE)
