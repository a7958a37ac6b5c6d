"""Write Hugging Face model directories: the rules of the families, applied backwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onmt_llm.atomic import AtomicDirectory, check_output
from onmt_llm.checkpoint.card import card_files
from onmt_llm.checkpoint.export_guard import obstacles, open_for_export
from onmt_llm.checkpoint.files.safetensors import ShardedWriter
from onmt_llm.checkpoint.formats.decoding_tokens import decoding_ids
from onmt_llm.checkpoint.formats.huggingface.card import transformers_card
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.families.base import Family
from onmt_llm.checkpoint.formats.huggingface.sampling import GENERATION_FILE, sampling_settings
from onmt_llm.checkpoint.formats.huggingface.tokenizer import tokenizer_files
from onmt_llm.checkpoint.formats.rules import apply
from onmt_llm.checkpoint.load import resolve_dtype
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.card import NOTHING_TO_ADD, CardOptions
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.text.codec import Codec

HF_DTYPES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def export_hf(
    checkpoint: Checkpoint | str | Path,
    output: str | Path,
    *,
    dtype: Dtype | None = None,
    shard_size: str | int = "5GB",
    card: CardOptions = NOTHING_TO_ADD,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint as a directory that `transformers` loads, with a model card.

    Args:
        checkpoint: A whole model; merge an adapter first.
        output: The directory to write.
        dtype: "fp32", "bf16" or "fp16"; None = unchanged.
        shard_size: Bytes per weight file.
        card: What the model card says besides the facts in the checkpoint.
        overwrite: Replace a model at `output`.

    Raises:
        CheckpointError: The checkpoint holds an adapter, or the output exists.
        UnsupportedError: No supported Hugging Face architecture computes this model.
    """
    check_output(Path(output), overwrite=overwrite)
    checkpoint = open_for_export(checkpoint)
    config = checkpoint.config.model
    family = family_for_export(config, checkpoint.config.source)
    codec = checkpoint.codec()
    files: dict[str, Path | str] = {
        "config.json": _json(_settings(family, codec, HF_DTYPES[dtype or config.dtype])),
        GENERATION_FILE: _json(_generation(codec)),
        **tokenizer_files(checkpoint, codec, family.model_type),
        **card_files(checkpoint, Path(output), transformers_card(codec), card),
    }
    stream = apply([one.reversed for one in family.rules(config)], checkpoint, None, what=str(checkpoint.path))
    with AtomicDirectory(output, overwrite=overwrite) as directory, checkpoint.progress("export") as progress:
        writer = ShardedWriter(directory.directory, shard_size)
        for name, tensor in stream:
            with directory.translated_errors():
                writer.add(name, tensor, None if dtype is None else resolve_dtype(dtype, config.dtype))
            progress.add(tensor.nbytes)
            del tensor  # before the next one is read
        writer.close()
        for name, content in files.items():
            if isinstance(content, str):
                directory.add_text(name, content)
            else:
                directory.add_file(content, name)
    return Path(output)


def family_for_export(config: ModelConfig, source: str = "") -> Family:
    """The family that the model came from, if it can express `config` exactly; otherwise the first that can.

    Args:
        config: The architecture.
        source: What the checkpoint was converted from.

    Raises:
        UnsupportedError: None can; the message lists every family's obstacles.
    """
    reasons = []
    for family in sorted(FAMILIES, key=lambda family: not source.startswith(f"{family.origin},")):
        found = obstacles(config, family.expressible)
        if not found:
            return family
        reasons.append(f"{family.model_type}: {', '.join(found)}")
    raise UnsupportedError("No Hugging Face architecture expresses this model (" + "; ".join(reasons) + ").")


def _settings(family: Family, codec: Codec, dtype: str) -> dict[str, Any]:
    """The contents of config.json.

    Raises:
        UnsupportedError: The family fixes the id of a token, and the model's token has another.
    """
    written = family.to_hf(codec.config.model)
    ids = {key: number for key, number in _ids(codec).items() if number is not None or key not in written}
    for key, number in ids.items():
        if written.get(key, number) != number:
            raise UnsupportedError(
                f"{key} of a {family.model_type} model must be {written[key]}, but the token of this model has the id "
                f"{number}."
            )
    return {**written, "dtype": dtype, "torch_dtype": dtype, **ids}


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _ids(codec: Codec) -> dict[str, Any]:
    vocab = codec.vocab
    ids = {"bos_token_id": vocab.bos_id, "eos_token_id": vocab.eos_id, "pad_token_id": vocab.pad_id}
    return ids if codec.task == "lm" else {**ids, **decoding_ids(codec)}


def _generation(codec: Codec) -> dict[str, Any]:
    """generation_config.json, with all ids that end an answer, and how the model samples."""
    ends = [codec.vocab.id(token) for token in codec.stop_tokens]
    ids = {**_ids(codec), "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
    return {**ids, **sampling_settings(codec.config.sampling)}
