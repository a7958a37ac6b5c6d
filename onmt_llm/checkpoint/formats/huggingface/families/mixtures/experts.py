"""What the families of mixtures share: rows of the routing, and names of the experts' tensors."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import where
from onmt_llm.checkpoint.formats.huggingface.families.base import Row, setting
from onmt_llm.checkpoint.formats.ops import SplitRows, Stacked
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

EXPERT = "decoder.layers.{i}.mlp.experts.{e}"
MLP = "model.layers.{i}.mlp"
HARMLESS = ("output_router_logits",)


def of_all(kind: str, *layers: str, experts: int) -> list[str]:
    """Names of the weights or biases (`kind`) of these layers of each expert."""
    return [f"{EXPERT}.{layer}_proj.{kind}".replace("{e}", str(e)) for e in range(experts) for layer in layers]


def stacked(config: ModelConfig) -> list[Rule]:
    """Rules for the experts of a layer in one tensor (E, O, D), in which gate and up of each expert are neighbours."""
    count, inner = config.moe.experts, config.expert_size
    fused = [
        rule("decoder.layers.{i}.mlp.router.weight", f"{MLP}.gate.weight"),
        rule(
            of_all("weight", "gate", "up", experts=count),
            f"{MLP}.experts.gate_up_proj",
            Stacked(count, SplitRows((inner, inner))),
        ),
        rule(of_all("weight", "down", experts=count), f"{MLP}.experts.down_proj", Stacked(count)),
    ]
    return per_layer(fused, config.decoder_layers)


def experts(*keys: str, defaults: tuple[int, int], balance: float = 0.001) -> tuple[Row, ...]:
    """The rows of all these families.

    Args:
        keys: Key of the number of experts, and other names of it.
        defaults: Number of experts, and of those that compute a token.
        balance: Default weight of the load-balancing loss.
    """
    return (
        experts_only(*keys, default=defaults[0]),
        setting("moe.experts_per_token", "num_experts_per_tok", default=defaults[1]),
        setting("moe.balance_loss", "router_aux_loss_coef", default=balance),
    )


def experts_only(*keys: str, default: int) -> Row:
    """The number of experts, which no model of the family is without."""
    count = setting("moe.experts", *keys, default=default)
    some = where(lambda config: config.moe.experts > 0, ", but the family has experts")
    return Row(count.keys, count.read, count.write, {"moe.experts": some})


def expert_width(default: int) -> Row:
    """The inner width of an expert where it has its own key."""
    key = "moe_intermediate_size"
    size = setting("moe.expert_size", key, default=default)
    return Row(size.keys, size.read, lambda config: {key: config.expert_size}, size.checks)
