"""Release formats that keep the weights unchanged: a checkpoint directory for inference, and a single `.pt` file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onmt_llm.atomic import atomic_file, check_output_file, is_written_in_place
from onmt_llm.checkpoint.directory import find_damage
from onmt_llm.checkpoint.files.safetensors import fast_tensor_digest
from onmt_llm.checkpoint.files.torch_pickle import load_torch
from onmt_llm.checkpoint.files.torch_state_dict import save_torch
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.checksums import fast_digest
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.releasing.number_format import NumberFormat
from onmt_llm.releasing.verify import ReleaseReport, Verify


def release_safetensors(
    checkpoint: Checkpoint, output: Path, *, numbers: NumberFormat, verify: Verify, text: str | None, force: bool
) -> ReleaseReport:
    """Write a checkpoint directory without training state; verified by the content of its tensors."""
    _refuse_quantization("safetensors", numbers.quantization)
    with CheckpointWriter(output, checkpoint.config, overwrite=force) as writer:
        for name, tensor in checkpoint.tensors():
            writer.add(name, tensor)
        for file in checkpoint.files():
            writer.add_file(file, file.name)
        if verify != "off":
            writer.finish()
            damaged = find_damage(writer.directory, thorough=True)
            if damaged or Checkpoint.open(writer.directory).fingerprint != checkpoint.fingerprint:
                raise CheckpointError(
                    f"{output} must hold the tensors of {checkpoint.path}, but differs: {'; '.join(damaged[:20])}."
                )
    return {
        "format": "safetensors",
        "source": str(checkpoint.path),
        "fingerprint": checkpoint.fingerprint,
        "verdict": "not verified" if verify == "off" else "pass",
    }


def release_pytorch(
    checkpoint: Checkpoint, output: Path, *, numbers: NumberFormat, verify: Verify, text: str | None, force: bool
) -> ReleaseReport:
    """Write one file for `torch.load(..., weights_only=True)`: tensors, vocabulary, configuration, tokeniser files.

    The dictionary's keys are `model` (name -> tensor), `vocab` (tokens in id order), `config` (content of config.yaml),
    `files` (name -> the file's bytes as a uint8 tensor) and `xxh3`, a checksum of all (`find_pytorch_damage`). The
    whole model is in memory during writing.
    """
    _refuse_quantization("pytorch", numbers.quantization)
    check_output_file(output, overwrite=force)
    tensors = dict(checkpoint.tensors())
    content: dict[str, Any] = {
        "model": tensors,
        "vocab": list(checkpoint.codec().vocab),
        "config": checkpoint.config.model_dump(mode="json"),
        "files": {file.name: _bytes(file) for file in checkpoint.files()},
    }
    content["xxh3"] = _digest(content)
    with atomic_file(output) as temporary:
        save_torch(content, temporary)
        unread = verify == "off" or is_written_in_place(output)  # what was written to a pipe cannot be read back
        verdict = "not verified" if unread else _verify_pytorch(temporary, tensors)
    return {"format": "pytorch", "source": str(checkpoint.path), "tensors": len(tensors), "verdict": verdict}


def _refuse_quantization(format: str, quantization: str | None) -> None:
    """Refuse a quantisation for formats that keep the weights unchanged."""
    if quantization is not None:
        raise ConfigError(
            f"quantization must be left out for the format {format}, which keeps the weights unchanged, "
            f"but is {quantization}.",
            hint="use --format ctranslate2 to quantise",
        )


def find_pytorch_damage(path: Path) -> list[str]:
    """Verify a released `.pt` file: its damage, one phrase each; empty = intact.

    Raises:
        CheckpointError: It cannot be read, or is not a release.
    """
    content = load_torch(path)
    if not isinstance(content, dict) or not {"model", "vocab", "config", "files", "xxh3"} <= content.keys():
        raise CheckpointError(f"{path} must be a release of the format pytorch, but is not.")
    try:
        intact = content["xxh3"] == _digest(content)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):  # something is not a tensor
        intact = False
    return [] if intact else ["it has another checksum than when it was written"]


def _digest(content: Mapping[str, Any]) -> str:
    """XXH3 of everything in a release of the format pytorch."""
    text = json.dumps([content["vocab"], content["config"]], sort_keys=True).encode()
    tensors = [fast_tensor_digest(name, content[part][name]) for part in ("model", "files") for name in content[part]]
    return fast_digest(text, "".join(tensors).encode())


def _bytes(file: Path) -> torch.Tensor:
    return (
        torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        if file.stat().st_size
        else torch.empty(0, dtype=torch.uint8)
    )


def _verify_pytorch(file: Path, model: dict[str, torch.Tensor]) -> str:
    read = torch.load(file, weights_only=True, mmap=True)["model"]
    wrong = [name for name, tensor in model.items() if name not in read or not torch.equal(tensor, read[name])]
    if wrong:
        raise CheckpointError(
            f"The released file must read back as it was written, but differs in: {', '.join(wrong[:20])}."
        )
    return "pass"
