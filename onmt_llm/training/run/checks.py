"""Check a run before anything is built: its options together, and the packages that it needs."""

from __future__ import annotations

from onmt_llm.data.spec import split_corpora
from onmt_llm.training.checks import check_in_backward, check_reference, check_validation
from onmt_llm.training.losses.objective import open_alignment
from onmt_llm.training.metrics.sinks import check_trackers
from onmt_llm.training.optim.registry import check_package
from onmt_llm.training.setup.run_setup import RunSetup


def check_run(setup: RunSetup) -> None:
    """Check what `train` checks while it builds a run.

    Raises:
        OnmtLlmError: As `train`.
    """
    config = setup.config
    train, valid = split_corpora(config.corpora.data)
    check_validation(config.validation, valid)
    check_trackers(wandb=config.watching.wandb, mlflow=config.watching.mlflow)
    open_alignment(config.loss, setup.start.model, train)
    check_reference(config.corpora.objective, config.preference, adapters=setup.layers.beside_base is not None)
    check_package(config.optimizer.optim)
    check_in_backward(config, config.devices.world_size)
