"""Perplexity and accuracy on held-out corpora, weighted by tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from onmt_llm.data.batching import Batch
from onmt_llm.errors import DataError
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dist import World
from onmt_llm.training.loss import batch_loss
from onmt_llm.training.metrics import Totals
from onmt_llm.training.precision import Precision


@torch.no_grad()
def validate(model: Transformer, batches: Iterable[Batch], *, precision: Precision, world: World) -> Totals:
    """Totals of `model` over one pass through `batches`, summed over ranks; dropout is off meanwhile.

    Raises:
        DataError: There is no token to be judged by.
    """
    row = Totals.empty_row(world.device)
    model.eval()
    try:
        for batch in batches:
            on_device = batch.to(world.device)
            with precision.compute(world.device):
                row += Totals.row(batch_loss(model, on_device), on_device)
    finally:
        model.train()
    totals = Totals.from_row(world.sum(row))
    if totals.tokens == 0:
        raise DataError("The validation corpora must hold at least one trained token, but hold none.")
    return totals
