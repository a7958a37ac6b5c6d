"""What the families of mixtures share: rows of the routing, and names of the experts' tensors."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import where
from onmt_llm.checkpoint.formats.huggingface.families.base import Row, setting

EXPERT = "decoder.layers.{i}.mlp.experts.{e}"
HARMLESS = ("output_router_logits",)


def of_all(kind: str, *layers: str, experts: int) -> list[str]:
    """Names of the weights or biases (`kind`) of these layers of each expert."""
    return [f"{EXPERT}.{layer}_proj.{kind}".replace("{e}", str(e)) for e in range(experts) for layer in layers]


def experts(*keys: str, defaults: tuple[int, int], balance: float = 0.001) -> tuple[Row, ...]:
    """The rows of all these families.

    Args:
        keys: Key of the number of experts, and other names of it.
        defaults: Number of experts, and of those that compute a token.
        balance: Default weight of the load-balancing loss.
    """
    count = setting("moe.experts", *keys, default=defaults[0])
    some = where(lambda config: config.moe.experts > 0, ", but the family has experts")
    return (
        Row(count.keys, count.read, count.write, {"moe.experts": some}),
        setting("moe.experts_per_token", "num_experts_per_tok", default=defaults[1]),
        setting("moe.balance_loss", "router_aux_loss_coef", default=balance),
    )
