"""A language model as prior of a translation model (Baziotis et al. 2020), for low-resource language pairs.

    loss = nll + lambda tau^2 sum_v q_v (log q_v - log p_v)

at every trained position, where p and q are the distributions of the model and of the language model, both at
temperature tau. As in OpenNMT-py, q of the unknown token is made negligible, and q of the end token is multiplied by
e^-20, since sentences of a language model end elsewhere than translations. (OpenNMT-py adds padding positions to the
sum; we don't.)

Shapes: B batch, T positions, C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.checkpoint.directory import CT2_MODEL_FILE, MANIFEST_FILE
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.config.learning import LossConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError
from onmt_llm.generate.ct2.model import check_release, model_tokens
from onmt_llm.optional import require
from onmt_llm.text.vocab import Vocab

_UNKNOWN = -50.0
_END = -20.0

Logits = Callable[[Tensor], Tensor]
"""Flat positions (C,) of a batch -> the language model's logits there, (C, V)."""


@dataclass(frozen=True)
class PriorTerm:
    """The prior term of one batch.

    Attributes:
        weight: lambda.
        tau: Temperature.
        log_probs: Flat positions (C,) of the batch -> log q (C, V), float32.
    """

    weight: float
    tau: float
    log_probs: Logits

    def loss_and_gradient(self, logits_CV: Tensor, positions_C: Tensor) -> tuple[Tensor, Tensor]:
        """The term summed over a chunk, and its gradient by the logits: lambda tau (p sum(q) - q)."""
        logq_CV = self.log_probs(positions_C)
        logp_CV = F.log_softmax(logits_CV / self.tau, dim=-1, dtype=torch.float32)
        q_CV = logq_CV.exp()
        loss = self.weight * self.tau**2 * (q_CV * (logq_CV - logp_CV)).sum()
        gradient_CV = logp_CV.exp_().mul_(q_CV.sum(-1, keepdim=True)).sub_(q_CV).mul_(self.weight * self.tau)
        return loss, gradient_CV


@dataclass(frozen=True)
class LmPrior:
    """A language model with the vocabulary of the trained model.

    Attributes:
        weight: lambda.
        tau: Temperature.
        logits: Runs the language model over a batch's targets.
        unk_id: The unknown token.
        eos_id: The end token.
    """

    weight: float
    tau: float
    logits: Callable[[Batch], Logits]
    unk_id: int | None
    eos_id: int | None

    def __call__(self, batch: Batch) -> PriorTerm:
        logits = self.logits(batch)

        def log_probs(positions_C: Tensor) -> Tensor:
            logq_CV = F.log_softmax(logits(positions_C) / self.tau, dim=-1, dtype=torch.float32)
            if self.unk_id is not None:
                logq_CV[:, self.unk_id] = _UNKNOWN
            if self.eos_id is not None:
                logq_CV[:, self.eos_id] += _END
            return logq_CV

        return PriorTerm(self.weight, self.tau, log_probs)


def open_prior(settings: LossConfig, vocab: Vocab, device: torch.device, *, packed: bool = False) -> LmPrior | None:
    """The prior of the options; None if there is none, or if its weight is 0.

    Args:
        settings: The options.
        vocab: Vocabulary of the trained model.
        device: Device of the prior.
        packed: Rows hold several documents that do not attend to each other.

    Raises:
        CheckpointError: There is no model at `lm_prior_model`.
        ConfigError: It is not a language model, its vocabulary differs, or it cannot separate documents.
    """
    path = settings.lm_prior_model
    if not path or not settings.lm_prior_lambda:
        return None
    release = (Path(path) / CT2_MODEL_FILE).is_file()
    if release and packed:
        raise ConfigError(
            f"lm_prior_model must be a checkpoint if rows are packed, but {path} is a CTranslate2 release, "
            "which cannot separate documents.",
            hint="packing: off, or the checkpoint that was released",
        )
    tokens, logits = _open_release(Path(path), device) if release else _open_checkpoint(path, device)
    if tokens != list(vocab):
        place = next((i for i, (a, b) in enumerate(zip(tokens, vocab, strict=False)) if a != b), None)
        what = f"has {len(tokens)} tokens instead of {len(vocab)}" if place is None else f"differs at line {place + 1}"
        raise ConfigError(
            f"lm_prior_model must have the target vocabulary of the trained model, but that of {path} {what}.",
            hint="train the language model with the same src_vocab and subword model",
        )
    return LmPrior(settings.lm_prior_lambda, settings.lm_prior_tau, logits, vocab.unk_id, vocab.eos_id)


def _open_checkpoint(path: str, device: torch.device) -> tuple[list[str], Callable[[Batch], Logits]]:
    checkpoint = Checkpoint.open(path)
    if not checkpoint.config.model.is_decoder_only:
        raise ConfigError(f"lm_prior_model must be a language model, but {path} is an encoder-decoder.")
    model = load_model(path, device=device).requires_grad_(False)

    def run(batch: Batch) -> Logits:
        with torch.no_grad():
            hidden_MD = model.decode(batch.tgt_BT, doc_BT=batch.doc_BT).flatten(0, 1)

        def logits(positions_C: Tensor) -> Tensor:
            with torch.no_grad():
                return model.logits(hidden_MD[positions_C])

        return logits

    return list(checkpoint.codec().vocab), run


def _open_release(path: Path, device: torch.device) -> tuple[list[str], Callable[[Batch], Logits]]:
    ct2: Any = require("ctranslate2", "lm_prior_model")
    if any((path / name).is_file() for name in (CONFIG_FILE, MANIFEST_FILE)):  # else another program's
        check_release(path)
    try:
        generator = ct2.Generator(str(path), device=device.type)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"lm_prior_model must be a language model, but CTranslate2 says of {path}: {error}"
        ) from error

    def run(batch: Batch) -> Logits:
        trained_BT = batch.labels_BT != -100
        steps_T = torch.arange(1, trained_BT.shape[1] + 1, device=trained_BT.device)
        lengths_B = (trained_BT * steps_T).amax(dim=1).clamp(min=1)
        rows = zip(batch.tgt_BT.tolist(), lengths_B.tolist(), strict=True)
        found = generator.forward_batch([row[:length] for row, length in rows], return_log_probs=False)
        logits_BTV = torch.as_tensor(np.array(found) if device.type == "cpu" else found, device=device)
        longest, width = logits_BTV.shape[1], trained_BT.shape[1]

        def logits(positions_C: Tensor) -> Tensor:
            return logits_BTV[positions_C // width, positions_C % width]

        assert longest <= width
        return logits

    return model_tokens(path), run
