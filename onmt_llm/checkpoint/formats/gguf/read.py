"""Read GGUF files, llama.cpp's format: metadata and dequantised tensors to ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.gguf import t5
from onmt_llm.checkpoint.formats.gguf.architectures import (
    ARCHITECTURES,
    HARMLESS_KEYS,
    rules,
    shown_by_tensors,
)
from onmt_llm.checkpoint.formats.gguf.rope import ROPE_TENSORS
from onmt_llm.checkpoint.formats.gguf.tensors import GgufTensors, find_gguf, gguf_parts, open_part
from onmt_llm.checkpoint.formats.gguf.tokenizer import read_tokenizer
from onmt_llm.checkpoint.formats.huggingface.families.base import nested
from onmt_llm.checkpoint.formats.huggingface.families.keys import Settings, check_keys
from onmt_llm.checkpoint.formats.imported import ImportedModel, ImportOptions
from onmt_llm.checkpoint.formats.rules import check_sizes
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, UnsupportedError


def open_gguf(path: Path, options: ImportOptions) -> ImportedModel:
    """Open a GGUF model of an architecture in `ARCHITECTURES`.

    Args:
        path: The file, or the directory that holds it.
        options: A tokeniser and a vocabulary are refused: the file holds its own.

    Raises:
        CheckpointError: The file is damaged or incomplete.
        UnsupportedError: The architecture, tokeniser or rotary scaling is not supported.
    """
    if options.tokenizer_model is not None or options.vocab_file is not None:
        raise CheckpointError(
            "A GGUF file holds its own tokeniser: -tokenizer_model and -vocab_file must not be given."
        )
    file = find_gguf(path)
    if file is None:
        raise CheckpointError(f"There is no GGUF file at {path}.")
    source = GgufTensors([open_part(part) for part in gguf_parts(file)])
    architecture = str(source.metadata.get("general.architecture"))
    config = _config(architecture, source, file.name, ignore_unknown=options.ignore_unknown)
    check_sizes(config, source, file)
    return ImportedModel(
        origin=f"GGUF {architecture}, {file.name}",
        model=config,
        source=source,
        rules=rules(architecture, config, source.names()),
        # A tied output layer needs no copy; rotary frequencies are computed.
        ignore=(*ROPE_TENSORS, "blk.*.attn_rot_embd", *t5.UNUSED),
        tokenizer=read_tokenizer(
            source.metadata,
            rows=config.vocab_size,
            start=int(source.metadata.get(f"{architecture}.{t5.START}", 0)) if config.encoder_layers else None,
        ),
    )


def _config(architecture: str, source: GgufTensors, file: str, *, ignore_unknown: bool) -> ModelConfig:
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"The GGUF architecture must be one of {', '.join(ARCHITECTURES)}, but is '{architecture}'."
        )
    names, prefix = source.names(), f"{architecture}."
    if "token_embd.weight" not in names:
        raise CheckpointError("The GGUF file must hold token_embd.weight, but does not.")
    metadata = {
        key.removeprefix(prefix): _decimal(value) for key, value in source.metadata.items() if key.startswith(prefix)
    }
    found = Settings(metadata, file=file)
    found |= {name: source.tensor(name) for name in ROPE_TENSORS if name in names}
    rows = ARCHITECTURES[architecture]
    known = [*(key for row in rows for key in row.keys), *HARMLESS_KEYS]
    check_keys(found, known, architecture, ignore_unknown=ignore_unknown)
    values = {name: value for row in rows for name, value in row.read(found).items()}
    values |= {"vocab_size": source.shape("token_embd.weight")[0], **shown_by_tensors(names, values)}
    return ModelConfig.model_validate(nested(values))


def _decimal(value: Any) -> Any:
    """The decimal number that was meant: GGUF stores 1e-5 as the nearest float32."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
