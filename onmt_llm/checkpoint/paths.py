"""Find a checkpoint directory. Without torch, so that a wrong path is reported before torch is imported."""

from __future__ import annotations

import re
from pathlib import Path

from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.errors import CheckpointError


def resolve_path(path: str | Path) -> Path:
    """The checkpoint directory that `path` names, with or without a trailing `.pt`.

    OpenNMT-py's documentation writes checkpoints with and without `.pt`, so both spellings are accepted.

    Raises:
        CheckpointError: There is no such directory, or it is not a checkpoint.
    """
    path = Path(path)
    twin = path.with_suffix("") if path.suffix == ".pt" else Path(f"{path}.pt")
    for candidate in (path, twin):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    for candidate in (path, twin):
        if candidate.is_file():
            raise CheckpointError(
                f"A checkpoint must be a directory that holds {CONFIG_FILE}, but {candidate} is a file.",
                hint=f"convert it first: onmt_llm_convert -from auto -model_dir {candidate} -output NEW_DIRECTORY",
            )
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"A checkpoint must hold {CONFIG_FILE}, but {path} is a peft adapter.",
            hint=f"onmt_llm_lora -action import -base_model BASE -lora_weights {path} -output NEW_DIRECTORY",
        )
    if path.is_dir():
        raise CheckpointError(
            f"A checkpoint must hold {CONFIG_FILE}, but {path} does not.",
            hint=f"if it holds another toolkit's model: onmt_llm_convert -model_dir {path} -output NEW_DIRECTORY",
        )
    if re.match("[a-z0-9]+:/", str(path)):
        address = str(path).replace(":/", "://", 1)  # undo what Path did to it
        raise CheckpointError(
            f"A checkpoint must be a local directory, but {address} is a URL.", hint="download it first"
        )
    raise CheckpointError(f"There is no checkpoint at {path}.")
