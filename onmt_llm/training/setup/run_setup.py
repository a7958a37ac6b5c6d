"""What a run is set up from: its options, the model that it starts from, the trained layers, the state to resume.

`check_run` checks it before anything is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onmt_llm.config.train import TrainConfig
from onmt_llm.data.spec import split_corpora
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.training.checks import (
    check_in_backward,
    check_reference,
    check_sharding,
    check_tensor_parallel,
    check_validation,
)
from onmt_llm.training.losses.objective import open_alignment
from onmt_llm.training.metrics.sinks import check_trackers
from onmt_llm.training.optim.registry import check_package
from onmt_llm.training.setup.layers import LayerPlan, resolve_layers
from onmt_llm.training.setup.start import Start, open_start
from onmt_llm.training.state import SavedState


@dataclass(frozen=True)
class RunSetup:
    """A run before anything is built.

    Attributes:
        config: All options.
        start: The model and the vocabularies that the run starts from.
        layers: The layers that are adapted, expanded or quantised.
        saved: The training state to resume; None = the run starts at step 0.
    """

    config: TrainConfig
    start: Start
    layers: LayerPlan
    saved: SavedState | None

    @property
    def companions(self) -> list[Path]:
        """Other models that the run needs: the reference of a preference loss, the prior."""
        names = (self.config.preference.reference_model, self.config.loss.lm_prior_model)
        return [Path(name) for name in names if name]


def open_run_setup(config: TrainConfig) -> RunSetup:
    """Open what the options name.

    Raises:
        OnmtLlmError: As `train`.
    """
    start = open_start(config)
    layers = resolve_layers(config, gated=start.model.ffn_gated, adapter=start.adapter, expansion=start.expansion)
    return RunSetup(config, start, layers, state_to_resume(config, start, layers))


def state_to_resume(config: TrainConfig, start: Start, layers: LayerPlan) -> SavedState | None:
    """The training state to resume; None if the run starts at step 0.

    Raises:
        ConfigError: It is of a run with another objective.
    """
    if start.saved is None or config.start.reset_optim == "all":
        return None
    before, now, path = start.saved.options.get("objective"), config.corpora.objective, config.start.train_from
    if before not in (None, now) and config.start.reset_optim != "states":
        raise ConfigError(
            f"objective must be {before}, as in the run that {path} resumes, but is {now}.",
            hint=f"for a new run with its weights, set another save_model, train_from: {path} and reset_optim: all",
        )
    if start.old_codec is not None and config.start.reset_optim != "states":
        logger.info(
            "update_vocab: %s was trained with another vocabulary: a new run starts at step 0 with a new optimiser "
            "(reset_optim: states keeps the step).",
            config.start.train_from,
        )
        return None
    if (layers.lora is not None and start.adapter is None) or start.is_newly_expanded:
        what = "LoRA" if start.expansion is None else "expanded blocks"
        logger.info("%s is a fully trained model: with %s a new run starts at step 0.", config.start.train_from, what)
        return None
    return start.saved


def check_run(setup: RunSetup) -> None:
    """Check what `train` checks while it builds a run.

    Raises:
        OnmtLlmError: As `train`.
    """
    config = setup.config
    train, _ = split_corpora(config.corpora.data)
    check_validation(config)
    check_trackers(wandb=config.watching.wandb, mlflow=config.watching.mlflow)
    open_alignment(config.loss, setup.start.model, train)
    check_reference(config.corpora.objective, config.preference, adapters=setup.layers.beside_base is not None)
    check_package(config.optimizer.optim)
    check_in_backward(config, config.devices.world_size)
    check_parallelism(setup, config.devices.world_size)


def check_parallelism(setup: RunSetup, world_size: int) -> None:
    """Check that the weights can be sharded among the processes as the options say.

    Raises:
        ConfigError: Some options need whole weights, or whole blocks.
    """
    config, layers = setup.config, setup.layers
    check_sharding(config, world_size, layers.quant_type)
    check_tensor_parallel(config, setup.start.model, world_size, adapter=layers.lora, quant_type=layers.quant_type)
