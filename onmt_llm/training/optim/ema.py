"""A running average of the trained weights, which translates better than the last weights do.

    average <- (1 - d) average + d weights        d = max(average_decay, 9 / (step + 10))

after update 1 (which it begins with) and every `average_every` updates from there on. That is Marian's and OpenNMT-py's
recurrence (Junczys-Dowmunt et al. 2018): early on it forgets fast, later it reaches 1 / average_decay updates back.
OpenNMT-py writes the average in the place of the weights, and goes on from it; here the two are saved side by side, so
that a resumed run is exact. (In float32 its average begins with update 2: until then it is the weights themselves.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.training.run_folder import average_path


class Average:
    """The average of a model's trainable parameters, in float32.

    Args:
        model: Its trainable parameters are averaged; what is frozen is its own average.
        decay: Weight of the present weights, once the run is long under way.
        every: Updates between two contributions.
    """

    def __init__(self, model: nn.Module, *, decay: float, every: int = 1) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._decay, self._every = decay, every
        self._values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step`, if it is time."""
        if not self._values:
            self._values = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        elif (step - 1) % self._every == 0:
            weights = [self._parameters[name].detach().float() for name in self._values]
            torch._foreach_lerp_(list(self._values.values()), weights, max(self._decay, 9 / (step + 10)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average as its weights; nothing may be trained meanwhile."""
        own = {name: p.data for name, p in self._parameters.items()}
        for name, value in self._values.items():
            self._parameters[name].data = value.to(own[name].dtype)
        try:
            yield
        finally:
            for name, data in own.items():
                self._parameters[name].data = data

    def load(self, checkpoint: Path) -> None:
        """Go on with the average that was saved beside `checkpoint`; where there is none, a new one begins.

        Raises:
            CheckpointError: It is of other parameters than those that are trained now.
        """
        path = average_path(checkpoint)
        if not path.is_dir():
            logger.warning("%s has no average beside it (%s): it begins anew.", checkpoint, path.name)
            return
        saved = Checkpoint.open(path)
        missing = [name for name in self._parameters if name not in saved.names()]
        if missing:
            raise CheckpointError(f"{path} must hold the parameters trained now, but lacks {', '.join(missing[:5])}.")
        self._values = {
            name: saved.tensor(name).to(device=p.device, dtype=torch.float32) for name, p in self._parameters.items()
        }
