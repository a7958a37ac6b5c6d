"""Compare the architecture that the user's options describe with that of a checkpoint (`override_opts`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onmt_llm.config.model import TASK_NOUNS, ModelConfig, Task
from onmt_llm.errors import ConfigError, Problem, raise_problems
from onmt_llm.log import logger


def apply_overrides(stored: ModelConfig, wanted: ModelConfig, *, override: bool, path: Path) -> ModelConfig:
    """The checkpoint's architecture, overridden by the options that the user set.

    Args:
        stored: The checkpoint's architecture.
        wanted: The user's; only the options that are set count.
        override: Let the options that are set override the checkpoint's; else they must be equal.
        path: The checkpoint, for messages.

    Raises:
        ConfigError: Without `override`, options differ; the message lists all of them.
    """
    found = differences(stored, wanted)
    if not found:
        return stored
    if not override:
        raise_problems(conflicts(stored, wanted, path))
    for key, mine, theirs in found:
        logger.warning("override_opts: %s is %s instead of the checkpoint's %s.", key, mine, theirs)
    try:
        return with_values(stored, wanted.model_dump(exclude_unset=True, exclude={"dtype"}))
    except ValidationError as error:
        raise ConfigError(f"{error.errors()[0]['ctx']['error']}, with the architecture of {path}.") from error


def check_task(wanted: Task | None, stored: ModelConfig, path: Path) -> Task:
    """The task of a checkpoint, which determines the task of training.

    Raises:
        ConfigError: The user asks for the other task.
    """
    task: Task = "lm" if stored.is_decoder_only else "seq2seq"
    if wanted not in (None, task):
        raise ConfigError(
            f"model_task (or encoder_type, decoder_type) must mean {task}, since {path} is {TASK_NOUNS[task]}, but "
            f"means {wanted}."
        )
    return task


def conflicts(stored: ModelConfig, wanted: ModelConfig, path: Path) -> list[Problem]:
    """A problem for each option that is set and differs from the checkpoint."""
    return [
        Problem(
            f"{key} must be {theirs}, as in the checkpoint {path}, but is {mine}.",
            hint="leave it out; or set override_opts: true, which forces options that change no tensor",
        )
        for key, mine, theirs in differences(stored, wanted)
    ]


def differences(stored: ModelConfig, wanted: ModelConfig) -> list[tuple[str, Any, Any]]:
    """(name, the user's value, the stored value) of every option that is set and differs."""
    written = wanted.model_dump(exclude_unset=True, exclude={"dtype"})
    return list(_differences(_effective(stored), _effective(wanted), written)) if written else []


def with_values(model: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """The architecture with other values; those of `rope` are named `rope.theta`, or given as a mapping.

    Raises:
        ValidationError: The values are inconsistent.
    """
    merged = model.model_dump()
    for key, value in values.items():
        section, _, inner = key.rpartition(".")
        if section:
            merged[section][inner] = value
        else:
            merged[key] = {**merged[key], **value} if isinstance(value, Mapping) else value
    return ModelConfig.model_validate(merged)


def _effective(model: ModelConfig) -> dict[str, Any]:
    """The architecture with its null values resolved, so that equal architectures compare equal."""
    filled = {
        "kv_heads": model.num_kv_heads,
        "head_dim": model.size_per_head,
        "src_vocab_size": model.encoder_vocab_size,
        "vocab_size": model.vocab_size,
    }
    return {**model.model_dump(), **filled}


def _differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], written: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in written:
        if isinstance(written[key], Mapping):
            yield from _differences(stored[key], wanted[key], written[key], f"{prefix}{key}.")
        elif wanted[key] != stored[key]:
            yield f"{prefix}{key}", wanted[key], stored[key]
