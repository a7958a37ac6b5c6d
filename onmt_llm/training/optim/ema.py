"""Exponential moving average (EMA) of the trained weights, which often translates better than the last weights.

    average <- (1 - d) average + d weights        d = max(average_decay, 9 / (step + 10))

It starts with the weights after update 1 and is updated every `average_every` updates. This is the recurrence of Marian
and OpenNMT-py (Junczys-Dowmunt et al. 2018): at first it forgets fast, later it reaches 1 / average_decay updates back.
OpenNMT-py saves the average instead of the weights and resumes from it; here both are saved, so that a resumed run is
exact. (OpenNMT-py's average in float32 starts with update 2; until then it is the weights themselves.)
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
from onmt_llm.training.process.shards import is_sharded, shard_like
from onmt_llm.training.run_folder import ema_path


class EMA:
    """Averages of a model's trainable parameters, in float32.

    Args:
        model: The model; its frozen parameters do not change and need no average.
        decay: Weight of the current weights, after the first updates.
        every: Updates between two updates of the average.
    """

    def __init__(self, model: nn.Module, *, decay: float, every: int = 1) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._decay, self._every = decay, every
        self._values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after update `step`, if it is due."""
        if not self._values:
            self._values = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        elif (step - 1) % self._every == 0:
            weights = [self._parameters[name].detach().float() for name in self._values]
            torch._foreach_lerp_(list(self._values.values()), weights, max(self._decay, 9 / (step + 10)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the averages as its weights; nothing may be trained inside."""
        own = {name: p.detach().clone() if is_sharded(p) else p.data for name, p in self._parameters.items()}
        for name, value in self._values.items():
            _set_data(self._parameters[name], value.to(own[name].dtype))
        try:
            yield
        finally:
            for name, data in own.items():
                _set_data(self._parameters[name], data)

    def load(self, checkpoint: Path) -> None:
        """Load the averages saved beside `checkpoint`; without them, a new average is started.

        Raises:
            CheckpointError: They are of other parameters than those trained now.
        """
        path = ema_path(checkpoint)
        if not path.is_dir():
            logger.warning(
                "%s has no averaged weights beside it (%s): a new average is started.", checkpoint, path.name
            )
            return
        saved = Checkpoint.open(path)
        missing = [name for name in self._parameters if name not in saved.names()]
        if missing:
            raise CheckpointError(f"{path} must hold the parameters trained now, but lacks {', '.join(missing[:5])}.")
        self._values = {
            name: shard_like(p, saved.tensor(name).to(device=p.device, dtype=torch.float32))
            for name, p in self._parameters.items()
        }


@torch.no_grad()
def _set_data(parameter: nn.Parameter, data: Tensor) -> None:
    if is_sharded(parameter):
        parameter.copy_(data)  # FSDP gathers from the memory that the parameter had when it was sharded
    else:
        parameter.data = data
