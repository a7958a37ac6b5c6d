"""Which layers of the model a run adapts (LoRA), expands with new blocks, or quantises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import AdapterSpec, ExpansionSpec
from onmt_llm.config.compat.names import layer_name
from onmt_llm.config.learning import LoraConfig, QuantizationConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.block_expansion import new_blocks

T = TypeVar("T")


@dataclass(frozen=True)
class LayerPlan:
    """Which layers are adapted, expanded or quantised. Without an adapter or an expansion the whole model is trained.

    Attributes:
        lora: Settings of the adapter, without its base; None = no adapter.
        expansion: The expanded blocks, without their base; None = no expansion.
        quantised: Names of the layers to quantise.
        quant_type: Their number format; empty if none is quantised.
    """

    lora: AdapterSpec | None = None
    expansion: ExpansionSpec | None = None
    quantised: tuple[str, ...] = ()
    quant_type: str = ""

    @property
    def twins(self) -> ExpansionSpec | None:
        """The expansion, if its new blocks run beside existing ones (`expand_type: concat`)."""
        return self.expansion if self.expansion is not None and self.expansion.type == "concat" else None

    @property
    def beside_base(self) -> AdapterSpec | ExpansionSpec | None:
        """The adapter or the twins: trained and saved without their base model."""
        return self.lora or self.twins

    @property
    def new_blocks(self) -> list[str]:
        """Paths of the new blocks in the trained model."""
        return [] if self.expansion is None else new_blocks(self.expansion.blocks, self.expansion.type)


def resolve_layers(
    config: TrainConfig, *, gated: bool, adapter: Checkpoint | None, expansion: ExpansionSpec | None
) -> LayerPlan:
    """The layers that the options, or the adapter in `train_from`, ask for.

    Args:
        config: All options.
        gated: The model's feed-forward layers are gated.
        adapter: The adapter, or the twins, that training continues; None = none.
        expansion: The blocks that are expanded; None = none.

    Raises:
        ConfigError: Quantised layers without adapters or twins, options of adapters or new blocks in a run that has
            none, or adapter options that differ from the stored adapter.
    """
    wanted = _wanted_adapter(config.lora, gated)
    stored = None if adapter is None else adapter.config.adapter
    if adapter is None or stored is None:
        spec = wanted if config.lora.is_on else None
    else:
        spec = _continued_adapter(config.lora, wanted, stored, adapter.path)
    _check_used(config, spec, expansion)
    if spec is not None and expansion is not None:
        raise ConfigError(
            "lora_layers and lora_embedding must be left out where expanded blocks are trained.",
            hint="merge the twins first: onmt_llm_lora -action merge"
            if expansion.type == "concat"
            else "reset_optim: all starts a new run that trains the whole deeper model",
        )
    if (spec or expansion) and (config.run.freeze_encoder or config.run.freeze_decoder):
        what = (
            "LoRA, which trains only its adapters"
            if expansion is None
            else "expanded blocks, which train only new ones"
        )
        raise ConfigError(
            f"freeze_encoder and freeze_decoder must be off with {what}.",
            hint="name the layers to adapt more narrowly, e.g. lora_layers: [cross_attn.q_proj]"
            if expansion is None
            else "name the blocks to expand with expand_stacks and expand_blocks",
        )
    quantised, quant_type = _quantised(config.quantization, stored or expansion, gated)
    if quantised and LayerPlan(spec, expansion).beside_base is None:
        raise ConfigError(
            f"quant_layers needs LoRA or expand_type: concat, since quantised weights are neither trained nor "
            f"saved, but the run has neither (quant_layers: {', '.join(quantised)})."
        )
    if spec is not None and spec.init == "loftq" and not quantised:
        raise ConfigError(
            "lora_init: loftq needs quant_layers, whose quantisation error it compensates, but there are none.",
            hint="lora_init: pissa works on full-precision layers",
        )
    update = {"quant_layers": list(quantised), "quant_type": quant_type}
    return LayerPlan(
        None if spec is None else spec.model_copy(update=update),
        None if expansion is None else expansion.model_copy(update=update),
        quantised,
        quant_type,
    )


def _check_used(config: TrainConfig, spec: AdapterSpec | None, expansion: ExpansionSpec | None) -> None:
    """Refuse settings of adapters or of new blocks where there are none: the user expects that little is trained. An
    explicit `lora_layers: []`, as in a file that changes another, says otherwise."""
    of_adapters = config.lora.model_dump(exclude_defaults=True)
    of_adapters |= config.optimizer.model_dump(include={"loraplus_lr_ratio"}, exclude_defaults=True)
    of_blocks = config.expansion.model_dump(exclude_defaults=True)
    for needed, section, options, is_on in (
        (("lora_layers", "lora_embedding"), config.lora, of_adapters, spec is not None),
        (("expand_every", "expand_blocks"), config.expansion, of_blocks, expansion is not None),
    ):
        if options and not is_on and section.model_fields_set.isdisjoint(needed):
            names, one = " and ".join(options), " or ".join(needed)
            raise ConfigError(
                f"{names} must come with {one}, but neither is set, so the whole model would be trained.",
                hint=f"set one of them, or leave {names} out",
            )


def _wanted_adapter(lora: LoraConfig, gated: bool) -> AdapterSpec:
    """The adapter of the options, without its base."""

    def names(pattern: Mapping[str, T]) -> dict[str, T]:
        return {layer_name(name, gated=gated): value for name, value in pattern.items()}

    return AdapterSpec(
        rank=lora.lora_rank,
        alpha=lora.lora_alpha,
        dropout=lora.lora_dropout,
        layers=[layer_name(name, gated=gated) for name in lora.lora_layers],
        embedding=lora.lora_embedding,
        rslora=lora.use_rslora,
        dora=lora.use_dora,
        rank_pattern=names(lora.lora_rank_pattern),
        alpha_pattern=names(lora.lora_alpha_pattern),
        init=lora.lora_init,
        init_iter=lora.lora_init_iter,
        base="",
        base_fingerprint="",
    )


_ADAPTER_OPTIONS = {
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "layers": "lora_layers",
    "embedding": "lora_embedding",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
    "init": "lora_init",
    "init_iter": "lora_init_iter",
}
"""Settings of a stored adapter that cannot change when training continues, each with its option."""


def _continued_adapter(lora: LoraConfig, wanted: AdapterSpec, stored: AdapterSpec, path: Path) -> AdapterSpec:
    """The stored adapter, with the dropout of the options.

    Raises:
        ConfigError: The options ask for another adapter.
    """
    differing = [
        f"{option} is {getattr(wanted, name)} in the options and {getattr(stored, name)} in the adapter"
        for name, option in _ADAPTER_OPTIONS.items()
        if option in lora.model_fields_set and getattr(wanted, name) != getattr(stored, name)
    ]
    if differing:
        raise ConfigError(
            f"{'; '.join(differing)}: training continues the adapter {path} as it is.",
            hint="leave these options out; or merge the adapter into its base and train a new one on that",
        )
    return (
        stored.model_copy(update={"dropout": lora.lora_dropout}) if "lora_dropout" in lora.model_fields_set else stored
    )


def _quantised(
    quant: QuantizationConfig, stored: AdapterSpec | ExpansionSpec | None, gated: bool
) -> tuple[tuple[str, ...], str]:
    if stored is not None and "quant_layers" not in quant.model_fields_set:
        return tuple(stored.quant_layers), quant.quant_type or stored.quant_type
    return tuple(
        layer_name(name, gated=gated) for name in quant.quant_layers
    ), quant.resolved_type if quant.quant_layers else ""
