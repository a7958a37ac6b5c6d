"""What a run starts from: a checkpoint (`train_from`) with the blocks that the run expands, or a new model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onmt_llm.checkpoint.load import open_base
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import CheckpointConfig, ExpansionSpec
from onmt_llm.config.learning import ExpansionConfig
from onmt_llm.config.model import TASK_NOUNS, ModelConfig
from onmt_llm.config.overrides import apply_overrides, check_task, differences, with_values
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.run_codec import RunCodec, checkpoint_codec, new_codec, updated_codec
from onmt_llm.errors import ConfigError, Problem, raise_problems
from onmt_llm.log import logger
from onmt_llm.nn.block_expansion import expanded_config
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.text.codec import Codec
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
        old_codec: The codec of `weights`, if the run has another vocabulary (`update_vocab`).
    """

    text: RunCodec
    weights: Checkpoint | None = None
    adapter: Checkpoint | None = None
    expansion: ExpansionSpec | None = None
    saved: SavedState | None = None
    old_codec: Codec | None = None

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
        if self.old_codec is None:
            return expanded_config(self.model, self.newly_stacked, sign=-1)
        sizes = self.old_codec.config.model.model_dump(include={"vocab_size", "src_vocab_size"})
        return self.model.model_copy(update=sizes)

    @property
    def is_newly_expanded(self) -> bool:
        """Whether there are expanded blocks that are new in this run."""
        source = self.adapter or self.weights
        return self.expansion is not None and (source is None or source.config.expansion is None)

    @property
    def newly_stacked(self) -> list[str]:
        """Paths of the blocks that are followed by a new one, in the model that `weights` holds."""
        if self.expansion is None or self.expansion.type == "concat" or not self.is_newly_expanded:
            return []
        return self.expansion.blocks


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
    start = _open_checkpoint(config, config.start.train_from)
    return _with_new_vocabulary(start, config) if config.start.update_vocab else start


def _open_checkpoint(config: TrainConfig, path: str) -> Start:
    checkpoint = Checkpoint.open(path)
    weights = open_base(checkpoint) if checkpoint.is_adapter else checkpoint
    adapter = checkpoint if checkpoint.has_adapter else None
    codec = checkpoint.codec()
    saved = read_state(checkpoint.path)
    model, spec = weights.config.model, checkpoint.config.expansion
    base = expanded_config(model, spec.blocks, sign=-1) if spec is not None and spec.type == "stack" else model
    expansion = _expansion(
        config.expansion, checkpoint, base, resumed=saved is not None and config.start.reset_optim != "all"
    )
    stored_model = model if expansion is None else base
    architecture = apply_overrides(
        stored_model, config.architecture, override=config.start.override_opts, path=checkpoint.path
    )
    if architecture != stored_model:
        _check_overrides(stored_model, architecture, config.architecture, checkpoint.path)
    stacked = expansion if expansion is not None and expansion.type == "stack" else None
    task = check_task(config.start.model_task, codec.config.model, checkpoint.path)
    logger.info("Task: %s, since %s is %s.", task, checkpoint.path, TASK_NOUNS[task])
    update: dict[str, Any] = {
        "adapter": None,
        "expansion": stacked,
        "model": architecture if stacked is None else expanded_config(architecture, stacked.blocks),
    }
    codec_config = codec.config.model_copy(update=update)
    return Start(
        checkpoint_codec(config, codec, codec_config, path=checkpoint.path),
        weights=weights,
        adapter=adapter,
        expansion=expansion,
        saved=saved,
    )


def _expansion(
    options: ExpansionConfig, checkpoint: Checkpoint, base: ModelConfig, *, resumed: bool
) -> ExpansionSpec | None:
    """The expansion that a run trains; None = no expansion.

    Twins in the checkpoint are always trained further, like an adapter. A deeper model is an ordinary one: a new run
    trains all of it unless the options name the same blocks again.

    Args:
        options: The options.
        checkpoint: The checkpoint of `train_from`.
        base: Architecture of the model before it was expanded.
        resumed: The run resumes the training state of the checkpoint.

    Raises:
        ConfigError: The options name blocks that do not exist, or other blocks than the stored ones.
    """
    stored = checkpoint.config.expansion
    if stored is None:
        if options.is_on and checkpoint.has_adapter:
            raise ConfigError(
                f"expand_every and expand_blocks must be left out with an adapter, but {checkpoint.path} is one.",
                hint="merge it into its base first: onmt_llm_lora -action merge",
            )
        return _new_expansion(options, base) if options.is_on else None
    if stored.type == "stack" and not resumed and not options.is_on:
        return None
    _check_same_expansion(options, stored, checkpoint, base)
    return stored


def _chosen_blocks(options: ExpansionConfig, base: ModelConfig) -> list[str]:
    """Paths of the blocks that the options name.

    Raises:
        ConfigError: A stack does not have some of them.
    """
    paths = []
    for stack in options.expand_stacks:
        layers, every = base.encoder_layers if stack == "encoder" else base.decoder_layers, options.expand_every
        numbers = sorted(options.expand_blocks) or range(every - 1, layers, every)
        if not layers:
            raise ConfigError(f"expand_stacks must name stacks that the model has, but it has {stack}_layers: 0.")
        if every > layers:
            raise ConfigError(f"expand_every must be at most {layers}, the blocks of the {stack}, but is {every}.")
        if numbers[-1] >= layers:
            raise ConfigError(
                f"expand_blocks must name blocks of the {stack}, 0 to {layers - 1}, but names {numbers[-1]}."
            )
        paths += [f"{stack}.layers.{number}" for number in numbers]
    return paths


def _new_expansion(options: ExpansionConfig, base: ModelConfig) -> ExpansionSpec:
    if options.expand_type == "stack" and base.norm_position != "pre":
        raise ConfigError(
            "expand_type: stack needs norm_position: pre, since an added block would still normalise its input "
            f"with norm_position: {base.norm_position}.",
            hint="expand_type: concat works with it too",
        )
    return ExpansionSpec(type=options.expand_type, blocks=_chosen_blocks(options, base), lerp=options.expand_lerp)


def _check_same_expansion(
    options: ExpansionConfig, stored: ExpansionSpec, checkpoint: Checkpoint, base: ModelConfig
) -> None:
    """Refuse options that differ from the stored expansion."""
    compared = {
        "expand_type": (options.expand_type, stored.type),
        "expand_lerp": (options.expand_lerp, stored.lerp),
    }
    differing = [
        f"{option} is {given} in the options and {kept} in the checkpoint"
        for option, (given, kept) in compared.items()
        if option in options.model_fields_set and given != kept
    ]
    if options.is_on and (blocks := _chosen_blocks(options, base)) != stored.blocks:
        here, there = ", ".join(blocks), ", ".join(stored.blocks)
        differing.append(f"expand_blocks are {here} in the options and {there} in the checkpoint")
    if differing:
        raise ConfigError(
            f"{'; '.join(differing)}: training continues the new blocks of {checkpoint.path} as they are.",
            hint="leave these options out",
        )


def _with_new_vocabulary(start: Start, config: TrainConfig) -> Start:
    """A checkpoint with the vocabulary, and the tokeniser, of the options.

    Raises:
        ConfigError: There are adapters or expanded blocks, whose embeddings are not trained.
    """
    if start.expansion is not None:
        raise ConfigError(
            "update_vocab needs training of the whole model, since expanded blocks leave new rows untrained.",
            hint="leave expand_every and expand_blocks out, or change the vocabulary in a run before",
        )
    if start.adapter is not None or config.lora.is_on:
        raise ConfigError(
            "update_vocab needs training of the whole model, since adapters leave new rows untrained.",
            hint="take LoRA out, or merge the adapter into its base first",
        )
    assert start.weights is not None
    text = updated_codec(config, start.text, start.weights.path)
    return start if text is start.text else replace(start, text=text, old_codec=start.codec)


def _check_overrides(stored: ModelConfig, model: ModelConfig, wanted: ModelConfig, path: Path) -> None:
    """Refuse to force another shape on tensors, by the options that ask for it.

    Raises:
        ConfigError: Names each of them.
    """
    shapes = parameter_shapes(stored)
    if parameter_shapes(model) == shapes:
        return
    changed = differences(stored, wanted)
    reshaping = [(key, given, kept) for key, given, kept in changed if _reshapes(stored, key, given, shapes)]
    raise_problems(
        Problem(
            f"{key} must be {kept}, since the tensors of {path} have this shape, but is {given}.",
            hint="override_opts changes what is computed with the tensors, not the tensors: leave the option out",
        )
        for key, given, kept in reshaping or changed
    )


def _reshapes(stored: ModelConfig, key: str, value: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a model would have other tensors with this option alone."""
    try:
        return parameter_shapes(with_values(stored, {key: value})) != shapes
    except ValidationError:
        return True  # valid only together with other options: a width that the heads do not divide
