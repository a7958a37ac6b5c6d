"""Token embeddings, which can be tied to the output layer, and their noise (NEFTune)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.nn.positions import Positions


class TokenEmbedding(nn.Embedding):
    """A vector per token; `project` uses the transposed matrix as the output layer."""

    def project(self, x_BTD: Tensor) -> Tensor:
        """Logits of all tokens, (B, T, V): the output layer of a model with tied embeddings."""
        return F.linear(x_BTD, self.weight)


class TiedHead(nn.Module):
    """Output layer without a matrix of its own: it uses the decoder's embedding, wrapped or not.

    The embedding is an argument of each call instead of a shared parameter. So loading, quantising, wrapping and
    sharding need not tie the weights again, and no weight is counted or saved twice.
    """

    def __init__(self, vocab_size: int, *, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def forward(self, x_BTD: Tensor, embedding: nn.Module) -> Tensor:
        """Logits (B, T, V); `embedding` is a TokenEmbedding or a LoRAEmbedding around one."""
        logits_BTV = embedding.project(x_BTD)  # type: ignore[operator]
        return logits_BTV if self.bias is None else logits_BTV + self.bias


def add_noise(x_BTD: Tensor, alpha: float, positions: Positions) -> Tensor:
    """NEFTune (Jain et al. 2024): uniform noise of up to alpha / sqrt(T D).

    T is the length of the row, or of the document in a packed row.
    """
    if not alpha:
        return x_BTD
    length = positions.lengths() if positions.index_BT is not None else x_BTD.shape[1]
    size = alpha * (torch.as_tensor(length, device=x_BTD.device, dtype=torch.float32) * x_BTD.shape[2]).rsqrt()
    noise_BTD = torch.empty_like(x_BTD).uniform_(-1, 1)
    return x_BTD + noise_BTD * (size if size.ndim == 0 else size[..., None]).to(x_BTD.dtype)
