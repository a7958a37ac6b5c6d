"""Validation on held-out corpora: perplexity and accuracy of gold targets, and scores of generated answers.

With running averages of the weights (`average_decay`) the averages are validated, as in OpenNMT-py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import DataError
from onmt_llm.training.losses.objective import LIKELIHOOD, Objective
from onmt_llm.training.metrics.totals import Totals, ValidationResult
from onmt_llm.training.optim.ema import EMA
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.parallel import TrainingModule, in_step, release, whole_weights
from onmt_llm.training.process.dist import World
from onmt_llm.training.validation.generation import GenerationValidator


@dataclass(frozen=True)
class Validator:
    """Validates a model during training.

    Attributes:
        module: The model as the loop calls it.
        corpora: The validation corpora by name; each iteration is one pass.
        precision: Number formats.
        world: This process among the others.
        ema: Validate these averages instead of the weights.
        generation: Scores generated answers; None = no metric needs them.
        objective: The loss to compute.
    """

    module: TrainingModule
    corpora: Mapping[str, Iterable[Batch]]
    precision: Precision
    world: World
    ema: EMA | None = None
    generation: GenerationValidator | None = None
    objective: Objective = LIKELIHOOD

    def __call__(self, step: int) -> ValidationResult:
        with nullcontext() if self.ema is None else self.ema.in_place():
            corpora = validate(
                self.module, self.corpora, precision=self.precision, world=self.world, objective=self.objective
            )
            scores = {}
            if self.generation is not None:
                with whole_weights(self.module):
                    scores = self.generation.score(self.module.model, step, precision=self.precision, world=self.world)
        totals = sum(corpora.values(), Totals())
        return ValidationResult(totals, scores, corpora if len(corpora) > 1 else {})


@torch.no_grad()
def validate(
    module: TrainingModule,
    corpora: Mapping[str, Iterable[Batch]],
    *,
    precision: Precision,
    world: World,
    objective: Objective = LIKELIHOOD,
) -> dict[str, Totals]:
    """Totals of a model over one pass through each of `corpora`, summed over ranks, without dropout.

    Raises:
        DataError: The corpora hold no trained token.
    """
    found = {}
    module.eval()
    try:
        for name, batches in corpora.items():
            row = Totals.empty_row(world.device)
            for batch, counts in in_step(batches, world, sharded=module.is_sharded):
                on_device = batch.to(world.device)
                with precision.compute(world.device):
                    loss = module(on_device, objective=objective)
                if counts:
                    row += Totals.row(loss, on_device)
            found[name] = Totals.from_row(world.sum(row))
    finally:
        release(module)
        module.train()
    if not any(totals.tokens for totals in found.values()):
        raise DataError("The validation corpora must hold at least one trained token, but hold none.")
    return found
