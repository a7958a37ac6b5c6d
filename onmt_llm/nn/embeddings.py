"""Token embeddings, which may serve as the output layer too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """A vector per token; `project` uses the same matrix the other way round."""

    def project(self, x_BTD: Tensor) -> Tensor:
        """Scores of all tokens, (B, T, V): the output layer of a model with tied embeddings."""
        return F.linear(x_BTD, self.weight)


class TiedHead(nn.Module):
    """Output layer without a matrix of its own: it asks the decoder's embedding, whatever wraps that by then.

    The embedding is handed in at each call instead of being shared as a parameter, so that nothing has to be tied
    again after loading, quantising, wrapping or sharding, and no weight is counted or saved twice.
    """

    def __init__(self, vocab_size: int, *, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def forward(self, x_BTD: Tensor, embedding: nn.Module) -> Tensor:
        """Logits (B, T, V); `embedding` is a TokenEmbedding or a LoRAEmbedding around one."""
        logits_BTV = embedding.project(x_BTD)  # type: ignore[operator]
        return logits_BTV if self.bias is None else logits_BTV + self.bias
