"""Block expansion: the blocks that the options name, or those of the stored expansion that training continues."""

from __future__ import annotations

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import ExpansionSpec
from onmt_llm.config.learning import ExpansionConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.block_expansion import expanded_config


def resolve_expansion(
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
        return _new(options, base) if options.is_on else None
    if stored.type == "stack" and not resumed and not options.is_on:
        return None
    _check_same(options, stored, checkpoint, base)
    return stored


def base_model(checkpoint: Checkpoint, weights: Checkpoint) -> ModelConfig:
    """The architecture of the model without an expansion.

    Args:
        checkpoint: The checkpoint of `train_from`.
        weights: The same, or the base of its adapter or twins.
    """
    spec, model = checkpoint.config.expansion, weights.config.model
    return expanded_config(model, spec.blocks, sign=-1) if spec is not None and spec.type == "stack" else model


def chosen_blocks(options: ExpansionConfig, base: ModelConfig) -> list[str]:
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


def _new(options: ExpansionConfig, base: ModelConfig) -> ExpansionSpec:
    if options.expand_type == "stack" and base.norm_position != "pre":
        raise ConfigError(
            "expand_type: stack must go with norm_position: pre, since an added block would still normalise its input "
            f"with norm_position: {base.norm_position}.",
            hint="expand_type: concat works with it too",
        )
    return ExpansionSpec(type=options.expand_type, blocks=chosen_blocks(options, base), lerp=options.expand_lerp)


def _check_same(options: ExpansionConfig, stored: ExpansionSpec, checkpoint: Checkpoint, base: ModelConfig) -> None:
    """Refuse options that differ from the stored expansion."""
    compared = {
        "expand_type": (options.expand_type, stored.type),
        "expand_lerp": (options.expand_lerp, stored.lerp),
    }
    differing = [
        f"{option} is {mine} in the options and {theirs} there"
        for option, (mine, theirs) in compared.items()
        if option in options.model_fields_set and mine != theirs
    ]
    if options.is_on and (blocks := chosen_blocks(options, base)) != stored.blocks:
        differing.append(f"expand_blocks are {', '.join(blocks)} in the options and {', '.join(stored.blocks)} there")
    if differing:
        raise ConfigError(
            f"{'; '.join(differing)}: training continues the new blocks of {checkpoint.path} as they are.",
            hint="leave these options out",
        )
