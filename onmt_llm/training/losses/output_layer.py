"""The output layer as the losses use it: applied to a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from onmt_llm.nn.transformer import Transformer


@dataclass(frozen=True)
class OutputLayer:
    """From hidden states to logits.

    Attributes:
        logits: (C, D) -> (C, V).
        parameters: Trainable parameters that `logits` uses.
        vocab_size: V, which determines how many positions are computed together.
    """

    logits: Callable[[Tensor], Tensor]
    parameters: Sequence[nn.Parameter]
    vocab_size: int

    @classmethod
    def of(cls, model: Transformer) -> OutputLayer:
        """The output layer of a model."""
        return cls(model.logits, output_parameters(model), model.config.vocab_size)

    def chunk_tokens(self, device_type: str) -> int:
        """Default number of positions whose logits are in memory together; see `default_chunk_tokens`."""
        return default_chunk_tokens(device_type, self.vocab_size, trained=bool(self.parameters))


def output_parameters(model: Transformer) -> list[nn.Parameter]:
    """Trainable parameters that `model.logits` uses: the output layer's, or the embedding's if they are tied."""
    modules = [model.lm_head]
    if model.config.tie_embeddings and model.decoder is not None:
        modules.append(model.decoder.embed_tokens)
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def default_chunk_tokens(device_type: str, vocab_size: int, *, trained: bool) -> int:
    """Positions whose logits are in memory together, unless `loss_chunk_tokens` says otherwise.

    Each chunk reads the whole output layer and, if that is `trained`, adds to its whole gradient. On a CPU a chunk
    should have some hundred positions, and at most 16 million logits, twice that for a trained layer.
    """
    most = 1 << (25 if trained and device_type == "cpu" else 24)
    logits = max(1 << 21, min(512 * vocab_size, most)) if device_type == "cpu" else most
    return max(1, logits // max(vocab_size, 1))
