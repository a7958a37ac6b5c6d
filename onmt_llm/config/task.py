"""The task of a new model (language model or translation), decided from the user's options; the same in all commands.

With `train_from`, the checkpoint determines the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onmt_llm.config.data import CorpusConfig, is_for_validation
from onmt_llm.config.model import ModelConfig, Task


@dataclass(frozen=True)
class TaskDecision:
    """A task and the reason for it, as the end of a sentence."""

    task: Task
    reason: str


def decide_task(
    model_task: Task | None,
    encoder_layers: int | None,
    corpora: Mapping[str, CorpusConfig],
    tgt_vocab: str | None,
) -> TaskDecision:
    """Decide the task of a new model.

    Args:
        model_task: The user's value.
        encoder_layers: The user's value; None = not set.
        corpora: All corpora, including those for validation.
        tgt_vocab: Vocabulary of the target side.

    Raises:
        ValueError: The options contradict each other, or leave the task open.
    """
    if model_task is not None:
        _check_encoder(model_task, encoder_layers)
        return TaskDecision(model_task, f"since model_task is {model_task}")
    if encoder_layers:
        return TaskDecision("seq2seq", f"since encoder_layers is {encoder_layers}")
    reason = _reason_for_translation(corpora, tgt_vocab)
    if reason is not None and encoder_layers == 0:
        raise ValueError(
            f"encoder_layers must be >= 1 for a translation model, {reason}, but is 0; "
            "for a language model, set model_task: lm"
        )
    if reason is not None:
        return TaskDecision("seq2seq", reason)
    pairs = [name for name, corpus in corpora.items() if corpus.path_tgt]
    if pairs and encoder_layers is None and not all(map(is_for_validation, corpora)):
        raise ValueError(f"model_task must be lm or seq2seq if only '{pairs[0]}', for validation, has a path_tgt")
    return TaskDecision("lm", "since encoder_layers is 0" if encoder_layers == 0 else "since no corpus has a path_tgt")


def _check_encoder(task: Task, encoder_layers: int | None) -> None:
    if task == "lm" and encoder_layers:
        raise ValueError(f"encoder_layers must be 0 with model_task: lm, but is {encoder_layers}")
    if task == "seq2seq" and encoder_layers == 0:
        raise ValueError("encoder_layers must be >= 1 with model_task: seq2seq, but is 0")


def _reason_for_translation(corpora: Mapping[str, CorpusConfig], tgt_vocab: str | None) -> str | None:
    """Why the model is a translation model; None if it is not."""
    pairs = [name for name, corpus in corpora.items() if corpus.path_tgt and not is_for_validation(name)]
    if pairs:
        return f"since corpus '{pairs[0]}' has a path_tgt"
    return None if tgt_vocab is None else "since there is a tgt_vocab"


def with_defaults(written: ModelConfig, task: Task, *, family: Literal["onmt_llm", "opennmt"]) -> ModelConfig:
    """The architecture of a new model: the options that are set, and the defaults of its task for the others.

    The defaults are based on measurements: docs/decisions/019-defaults-by-measurement.md.

    Args:
        written: The user's options; only those that are set count.
        task: Task of the model.
        family: Whose defaults; with `opennmt`, the model has the same parameters as in OpenNMT-py.
    """
    values = written.model_dump(exclude_unset=True)
    values.setdefault("decoder_layers", 2 if family == "opennmt" else written.decoder_layers)
    if task == "lm":
        values.setdefault("encoder_layers", 0)
    else:
        values.setdefault("encoder_layers", 2 if family == "opennmt" else values["decoder_layers"])
    values.setdefault("lm_head_bias", task == "seq2seq" or family == "opennmt")
    # unscaled embeddings have size 1 / sqrt(hidden_size) and would be lost beside sines of size 1
    values.setdefault("scale_embeddings", written.position == "sinusoidal" and written.embedding_scale is None)
    return ModelConfig.model_validate(values)
