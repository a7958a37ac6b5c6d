"""What a run starts from: a checkpoint (`train_from`), or a new model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onmt_llm.checkpoint.load import expected_shapes, open_base
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, ExpansionSpec
from onmt_llm.config.model import TASK_NOUNS, ModelConfig, apply_overrides, check_task, differences, with_values
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.run_codec import RunCodec, checkpoint_codec, new_codec, updated_codec
from onmt_llm.errors import ConfigError, Problem, raise_problems
from onmt_llm.log import logger
from onmt_llm.nn.block_expansion import expanded_config
from onmt_llm.text.codec import Codec
from onmt_llm.training.setup.expansion import base_model, resolve_expansion
from onmt_llm.training.state import SavedState, read_state


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        text: The codec, whose `config` becomes the `config.yaml` of the run's checkpoints, and its files.
        weights: Whole model to start from; None = new weights.
        adapter: LoRA weights, or twins of blocks, to start from.
        expansion: The blocks that are expanded; None = none.
        saved: Training state to resume from.
        before: The codec of `weights`, if the run has another vocabulary (`update_vocab`).
    """

    text: RunCodec
    weights: Checkpoint | None = None
    adapter: Checkpoint | None = None
    expansion: ExpansionSpec | None = None
    saved: SavedState | None = None
    before: Codec | None = None

    @property
    def codec(self) -> Codec:
        """The text side of the model."""
        return self.text.codec

    @property
    def config(self) -> CheckpointConfig:
        """Architecture and text side, as the run's checkpoints store them."""
        return self.codec.config

    @property
    def model(self) -> ModelConfig:
        """The architecture."""
        return self.config.model

    @property
    def stored_model(self) -> ModelConfig:
        """The architecture, with as many rows, and blocks, as `weights` have."""
        if self.before is None:
            return expanded_config(self.model, self.newly_stacked, sign=-1)
        sizes = self.before.config.model.model_dump(include={"vocab_size", "src_vocab_size"})
        return self.model.model_copy(update=sizes)

    @property
    def is_newly_expanded(self) -> bool:
        """Whether there are expanded blocks that are new in this run."""
        begun = self.adapter or self.weights
        return self.expansion is not None and (begun is None or begun.config.expansion is None)

    @property
    def newly_stacked(self) -> list[str]:
        """Paths of the blocks that get a new one behind them, in the model that `weights` holds."""
        if self.expansion is None or self.expansion.type == "concat" or not self.is_newly_expanded:
            return []
        return self.expansion.blocks

    @property
    def adapter_spec(self) -> AdapterSpec | None:
        """Settings of the adapter to start from."""
        return None if self.adapter is None else self.adapter.config.adapter


def open_start(config: TrainConfig) -> Start:
    """Open what the options say that the run starts from.

    Raises:
        CheckpointError: `train_from`, or the base of that adapter, is missing or damaged.
        ConfigError: The architecture written in the options is not that of `train_from`, or something that a new model
            needs is not given.
        DataError: A vocabulary or tokeniser cannot be read.
    """
    if config.start.train_from is None:
        return Start(new_codec(config))
    start = _continued(config, config.start.train_from)
    return _updated(start, config) if config.start.update_vocab else start


def _continued(config: TrainConfig, path: str) -> Start:
    checkpoint = Checkpoint.open(path)
    weights = open_base(checkpoint) if checkpoint.is_adapter else checkpoint
    codec = checkpoint.codec()
    saved = read_state(checkpoint.path)
    base = base_model(checkpoint, weights)
    expansion = resolve_expansion(
        config.expansion, checkpoint, base, resumed=saved is not None and config.start.reset_optim != "all"
    )
    before = weights.config.model if expansion is None else base
    architecture = apply_overrides(
        before, config.architecture, override=config.start.override_opts, path=checkpoint.path
    )
    _check_overridden(before, architecture, config.architecture, checkpoint.path)
    stacked = expansion if expansion is not None and expansion.type == "stack" else None
    task = check_task(config.start.model_task, codec.config.model, checkpoint.path)
    logger.info("Task: %s, since %s is %s.", task, checkpoint.path, TASK_NOUNS[task])
    update: dict[str, Any] = {
        "adapter": None,
        "expansion": stacked,
        "model": architecture if stacked is None else expanded_config(architecture, stacked.blocks),
    }
    stored = codec.config.model_copy(update=update)
    return Start(
        checkpoint_codec(config, codec, stored, path=checkpoint.path),
        weights=weights,
        adapter=checkpoint if checkpoint.has_adapter else None,
        expansion=expansion,
        saved=saved,
    )


def _updated(start: Start, config: TrainConfig) -> Start:
    """A checkpoint with the vocabulary, and the tokeniser, of the options.

    Raises:
        ConfigError: There are adapters or expanded blocks, whose embeddings are not trained.
    """
    if start.expansion is not None:
        raise ConfigError(
            "update_vocab must go with training the whole model, since expanded blocks leave new rows untrained.",
            hint="leave expand_every and expand_blocks out, or change the vocabulary in a run before",
        )
    if start.adapter is not None or config.lora.is_on:
        raise ConfigError(
            "update_vocab must go with training the whole model, since adapters leave new rows untrained.",
            hint="take LoRA out, or merge the adapter into its base first",
        )
    assert start.weights is not None
    text = updated_codec(config, start.text, start.weights.path)
    return start if text is start.text else replace(start, text=text, before=start.codec)


def _check_overridden(stored: ModelConfig, model: ModelConfig, wanted: ModelConfig, path: Path) -> None:
    """Refuse to force another shape on tensors, by the options that ask for it.

    Raises:
        ConfigError: Names each of them.
    """
    if model == stored:
        return
    held = expected_shapes(stored)
    if expected_shapes(model) == held:
        return
    odd = [
        (key, mine, theirs) for key, mine, theirs in differences(stored, wanted) if _reshapes(stored, key, mine, held)
    ]
    raise_problems(
        Problem(
            f"{key} must be {theirs}, since the tensors of {path} have this shape, but is {mine}.",
            hint="override_opts changes what is computed with the tensors, not the tensors: leave the option out",
        )
        for key, mine, theirs in odd or differences(stored, wanted)
    )


def _reshapes(stored: ModelConfig, key: str, value: Any, held: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a model would have other tensors with this option alone."""
    try:
        return expected_shapes(with_values(stored, {key: value})) != held
    except ValidationError:
        return True  # it needs others beside it: a width that the heads do not divide
