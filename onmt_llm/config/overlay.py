"""The architecture of a checkpoint, under the values that the user wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onmt_llm.config.model import ModelConfig
from onmt_llm.config.task import Task
from onmt_llm.errors import ConfigError, Problem, raise_problems
from onmt_llm.log import logger


def overlay(stored: ModelConfig, wanted: ModelConfig, *, override: bool, path: Path) -> ModelConfig:
    """The checkpoint's architecture, under the values that the user wrote.

    Args:
        stored: The checkpoint's.
        wanted: The user's; only the values that were written count.
        override: Written values win; else they must be the checkpoint's.
        path: The checkpoint, for the message.

    Raises:
        ConfigError: Without `override`, values that differ; the message lists all of them.
    """
    found = differing(stored, wanted)
    if not found:
        return stored
    if not override:
        raise_problems(unlike(stored, wanted, path))
    for key, mine, theirs in found:
        logger.warning("override_opts: %s is %s instead of the checkpoint's %s.", key, mine, theirs)
    try:
        return with_values(stored, wanted.model_dump(exclude_unset=True, exclude={"dtype"}))
    except ValidationError as error:
        raise ConfigError(f"{error.errors()[0]['ctx']['error']}, over the architecture of {path}.") from error


NOUNS: Mapping[Task, str] = {"lm": "a language model", "seq2seq": "an encoder-decoder"}


def check_task(wanted: Task | None, stored: ModelConfig, path: Path) -> Task:
    """What a checkpoint is for, which says what is trained: who writes something else means another checkpoint.

    Raises:
        ConfigError: It is not what is wanted.
    """
    task: Task = "lm" if stored.is_decoder_only else "seq2seq"
    if wanted not in (None, task):
        raise ConfigError(
            f"model_task (or encoder_type, decoder_type) must mean {task}, since {path} is {NOUNS[task]}, but means "
            f"{wanted}."
        )
    return task


def unlike(stored: ModelConfig, wanted: ModelConfig, path: Path) -> list[Problem]:
    """The values that were written and are not the checkpoint's."""
    return [
        Problem(
            f"{key} must be {theirs}, as in the checkpoint {path}, but is {mine}.",
            hint="leave it out; override_opts: true forces what changes no tensor",
        )
        for key, mine, theirs in differing(stored, wanted)
    ]


def differing(stored: ModelConfig, wanted: ModelConfig) -> list[tuple[str, Any, Any]]:
    """(name, the user's value, the stored value) of every written value that differs."""
    written = wanted.model_dump(exclude_unset=True, exclude={"dtype"})
    return list(_differing(_effective(stored), _effective(wanted), written))


def with_values(model: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """The same architecture with other values; those of `rope` may be named by `rope.theta` or in a mapping.

    Raises:
        ValidationError: They do not go together.
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
    """The architecture with its "null means ..." values filled in, so that two spellings of one thing are equal."""
    filled = {
        "kv_heads": model.num_kv_heads,
        "head_dim": model.size_per_head,
        "src_vocab_size": model.encoder_vocab_size,
        "vocab_size": model.vocab_size,
    }
    return {**model.model_dump(), **filled}


def _differing(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], written: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in written:
        if isinstance(written[key], Mapping):
            yield from _differing(stored[key], wanted[key], written[key], f"{prefix}{key}.")
        elif wanted[key] != stored[key]:
            yield f"{prefix}{key}", wanted[key], stored[key]
