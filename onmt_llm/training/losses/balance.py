"""The load-balancing loss of a mixture of experts: it is smallest where all experts compute equally many tokens.

    E sum_e f_e p_e

where f_e is the number of times that a token chose expert e, and p_e the sum of the router's probabilities of e, both
divided by the number of tokens, over all layers together (Fedus et al. 2022, equations 4 to 6; as in transformers). Its
gradient flows through p alone. Balanced routers have a loss of C.

Shapes: B rows, T positions, M = B T, E experts, C experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onmt_llm.config.learning import LossConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError
from onmt_llm.training.losses.cross_entropy import IGNORE


def balance_loss(logits: Sequence[Tensor], per_token: int, is_real_M: Tensor) -> Tensor:
    """The load-balancing loss (float32 scalar).

    Args:
        logits: The router's logits (M, E) of each layer.
        per_token: C.
        is_real_M: False at padding, which does not count.
    """
    is_real_M1 = is_real_M.unsqueeze(1).float()
    tokens = is_real_M1.sum().clamp(min=1) * len(logits)
    chosen_E = probs_E = torch.zeros((), device=is_real_M.device)
    for logits_ME in logits:
        probs_ME = logits_ME.softmax(dim=-1, dtype=torch.float32)
        counts_E = torch.zeros_like(probs_ME[0])
        best_MC = probs_ME.topk(per_token, dim=-1).indices
        chosen_E = chosen_E + counts_E.index_add(0, best_MC.flatten(), is_real_M1.expand_as(best_MC).flatten())
        probs_E = probs_E + (probs_ME * is_real_M1).sum(dim=0)
    return probs_E.numel() * (chosen_E / tokens * probs_E / tokens).sum()


def real_tokens(batch: Batch) -> Tensor:
    """(M,): False at padding of the decoder's input. In a row that is not packed, what follows the last label counts as
    padding: nothing that is trained sees it."""
    if batch.doc_BT is not None:
        return (batch.doc_BT > 0).flatten()
    is_label_BT = batch.labels_BT != IGNORE
    return (is_label_BT.flip(1).cumsum(1).flip(1) > 0).flatten()


def open_balance(settings: LossConfig, model: ModelConfig) -> float:
    """Weight of the load-balancing loss: that of the options, or else the model's; 0 without experts.

    Raises:
        ConfigError: The options ask for it, but the model has no experts.
    """
    if not model.moe_layers:
        if settings.lambda_balance:
            raise ConfigError(
                f"lambda_balance must be left out for a model without experts, but is {settings.lambda_balance:g}."
            )
        return 0.0
    return model.moe.balance_loss if settings.lambda_balance is None else settings.lambda_balance
