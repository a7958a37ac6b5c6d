"""How good a model is on held-out corpora: perplexity and accuracy of gold targets, scores of what it says itself.

With a running average of the weights (`average_decay`) it is the average that is judged, as in OpenNMT-py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import DataError
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dist import World
from onmt_llm.training.losses.cross_entropy import batch_loss
from onmt_llm.training.losses.objective import LIKELIHOOD, Objective
from onmt_llm.training.metrics.reporter import Judgement, Totals
from onmt_llm.training.optim.ema import Average
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.validation.translations import Translations


@dataclass(frozen=True)
class Judge:
    """Judges a model under training.

    Attributes:
        model: The model.
        corpora: The validation corpora by name; each iteration is one pass.
        precision: Number formats.
        world: This process among others.
        average: Judge this average instead of the weights.
        translations: What the model is asked to say itself.
        objective: What it is judged by.
    """

    model: Transformer
    corpora: Mapping[str, Iterable[Batch]]
    precision: Precision
    world: World
    average: Average | None = None
    translations: Translations | None = None
    objective: Objective = LIKELIHOOD

    def __call__(self, step: int) -> Judgement:
        with nullcontext() if self.average is None else self.average.in_place():
            corpora = validate(
                self.model, self.corpora, precision=self.precision, world=self.world, objective=self.objective
            )
            scores = {}
            if self.translations is not None:
                scores = self.translations.score(self.model, step, precision=self.precision, world=self.world)
        totals = sum(corpora.values(), Totals())
        return Judgement(totals, scores, corpora if len(corpora) > 1 else {})


@torch.no_grad()
def validate(
    model: Transformer,
    corpora: Mapping[str, Iterable[Batch]],
    *,
    precision: Precision,
    world: World,
    objective: Objective = LIKELIHOOD,
) -> dict[str, Totals]:
    """Totals of `model` over one pass through each of `corpora`, summed over ranks; dropout is off meanwhile.

    Raises:
        DataError: There is no token to be judged by.
    """
    found = {}
    model.eval()
    try:
        for name, batches in corpora.items():
            row = Totals.empty_row(world.device)
            for batch in batches:
                on_device = batch.to(world.device)
                with precision.compute(world.device):
                    row += Totals.row(batch_loss(model, on_device, objective=objective), on_device)
            found[name] = Totals.from_row(world.sum(row))
    finally:
        model.train()
    if not any(totals.tokens for totals in found.values()):
        raise DataError("The validation corpora must hold at least one trained token, but hold none.")
    return found
