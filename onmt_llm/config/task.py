"""What a new model is for, by what its user wrote: one decision for all commands.

With `train_from` nothing is decided here: the checkpoint is what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.model import ModelConfig

Task = Literal["lm", "seq2seq"]
"""What examples are for: a decoder alone, or an encoder with one."""


@dataclass(frozen=True)
class Decision:
    """A task, and why it was chosen, as the end of a sentence."""

    task: Task
    reason: str


def decide_task(
    model_task: Task | None,
    encoder_layers: int | None,
    corpora: Mapping[str, CorpusConfig],
    tgt_vocab: str | None,
) -> Decision:
    """The task of a new model.

    Args:
        model_task: As written.
        encoder_layers: As written; None = left out.
        corpora: All corpora, those for validation included.
        tgt_vocab: Vocabulary of the target side.

    Raises:
        ValueError: What is written contradicts itself, or leaves the task open.
    """
    if model_task is not None:
        _check_encoder(model_task, encoder_layers)
        return Decision(model_task, f"since model_task is {model_task}")
    if encoder_layers:
        return Decision("seq2seq", f"since encoder_layers is {encoder_layers}")
    reason = _asks_for_translation(corpora, tgt_vocab)
    if reason is not None and encoder_layers == 0:
        raise ValueError(
            f"encoder_layers must be >= 1 for a translation model, {reason}, but is 0; "
            "model_task: lm makes it a language model"
        )
    if reason is not None:
        return Decision("seq2seq", reason)
    judged = [name for name, corpus in corpora.items() if corpus.path_tgt]
    if judged and encoder_layers is None and not all(map(is_for_validation, corpora)):
        raise ValueError(f"model_task must be lm or seq2seq where only '{judged[0]}', for validation, has a path_tgt")
    return Decision("lm", "since encoder_layers is 0" if encoder_layers == 0 else "since no corpus has a path_tgt")


def _check_encoder(task: Task, encoder_layers: int | None) -> None:
    if task == "lm" and encoder_layers:
        raise ValueError(f"encoder_layers must be 0 with model_task: lm, but is {encoder_layers}")
    if task == "seq2seq" and encoder_layers == 0:
        raise ValueError("encoder_layers must be >= 1 with model_task: seq2seq, but is 0")


def _asks_for_translation(corpora: Mapping[str, CorpusConfig], tgt_vocab: str | None) -> str | None:
    """Why this is to be a translation model, if it is."""
    pairs = [name for name, corpus in corpora.items() if corpus.path_tgt and not is_for_validation(name)]
    if pairs:
        return f"since corpus '{pairs[0]}' has a path_tgt"
    return None if tgt_vocab is None else "since there is a tgt_vocab"


def is_for_validation(corpus: str) -> bool:
    """Whether a corpus of this name judges models, instead of training them."""
    return corpus == "valid" or corpus.startswith("valid_")


def with_defaults(written: ModelConfig, task: Task, *, family: Literal["onmt_llm", "opennmt"]) -> ModelConfig:
    """The architecture of a new model: what is written, and the defaults of its task where nothing is.

    They were chosen by what small models learn: docs/decisions/019-defaults-by-measurement.md.

    Args:
        written: The user's; only the values that were set count.
        task: What the model is for.
        family: Whose defaults: with OpenNMT-py's, the model has the parameters that it would have there.
    """
    values = written.model_dump(exclude_unset=True)
    values.setdefault("decoder_layers", 2 if family == "opennmt" else written.decoder_layers)
    if task == "lm":
        values.setdefault("encoder_layers", 0)
    else:
        values.setdefault("encoder_layers", 2 if family == "opennmt" else values["decoder_layers"])
    values.setdefault("lm_head_bias", task == "seq2seq" or family == "opennmt")
    # sines of size 1 would drown embeddings of size 1 / sqrt(hidden_size)
    values.setdefault("scale_embeddings", written.position == "sinusoidal")
    return ModelConfig.model_validate(values)
