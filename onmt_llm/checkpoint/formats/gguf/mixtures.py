"""Mixtures of experts in GGUF files: the experts of a layer are one tensor for each of their three matrices.

What is done with the weights of the chosen experts has no key: llama.cpp knows it for each architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from onmt_llm.checkpoint.export_guard import anything, only, where
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig, Row, Values, block, required
from onmt_llm.checkpoint.formats.huggingface.families.mixtures.experts import of_all
from onmt_llm.checkpoint.formats.ops import Reshape, SplitRows, Stacked
from onmt_llm.checkpoint.formats.rules import Rule, repeated, rule
from onmt_llm.config.model import ModelConfig

COUNT, USED = "expert_count", "expert_used_count"


def experts(*, normalized: bool, balance: float = 0.001, optional: bool = False) -> Row:
    """The number of experts, and of those that compute a token.

    Args:
        normalized: The weights of a token's experts are divided by their sum.
        balance: Weight of the load-balancing loss, for which there is no key.
        optional: Models of the architecture may be without experts.
    """

    def read(found: HfConfig) -> Values:
        if optional and not found.get(COUNT):
            return {}
        return {
            "moe.experts": int(required(found, COUNT)),
            "moe.experts_per_token": int(required(found, USED)),
            "moe.normalize_weights": normalized,
            "moe.balance_loss": balance,
        }

    def write(config: ModelConfig) -> Values:
        return {COUNT: config.moe.experts, USED: config.moe.experts_per_token} if config.moe.experts else {}

    some = where(lambda config: config.moe.experts > 0, ", but the architecture has experts")
    checks = {
        "moe.experts": anything("moe.experts")["moe.experts"] if optional else some,
        **anything("moe.experts_per_token", "moe.balance_loss"),
        "moe.normalize_weights": only(normalized),
    }
    return Row((COUNT, USED), read, write, checks)


def _size(ours: str, key: str, default: Callable[[HfConfig], int]) -> Row:
    """A width with its own key, and a default as in llama.cpp."""
    name = ours.removeprefix("moe.")

    def write(config: ModelConfig) -> Values:
        return {key: config.expert_size if name == "expert_size" else config.moe.shared_size}

    return Row((key,), lambda found: {ours: int(found.get(key) or default(found))}, write, anything(ours))


EXPERT_SIZE = _size(
    "moe.expert_size",
    "expert_feed_forward_length",
    lambda found: required(found, "feed_forward_length") // required(found, USED),
)
SHARED_SIZE = _size(
    "moe.shared_size", "expert_shared_feed_forward_length", lambda found: required(found, "feed_forward_length")
)


_NAMES = {
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}


def expert_rules(config: ModelConfig, names: Collection[str]) -> list[Rule]:
    """Rules of the experts of each layer, with `{i}` for its number; none without experts.

    Args:
        config: The model.
        names: Of the tensors, which may also be two matrices of all experts in one, or those of each expert.
    """
    count = config.moe.experts
    if not count:
        return []
    gate = rule(
        "decoder.layers.{i}.mlp.shared_gate.weight",
        "blk.{i}.ffn_gate_inp_shexp.weight",
        Reshape((config.hidden_size,), (1, config.hidden_size)),
    )
    if any(name.endswith(".ffn_gate.0.weight") for name in names):  # before March 2024
        each = {f"mlp.experts.{{e}}.{name}_proj": f"ffn_{name}.{{e}}" for name in ("gate", "up", "down")}
        return [*block("blk", _NAMES), *repeated(block("blk", each), "{e}", count)]
    if any(name.endswith(".ffn_gate_up_exps.weight") for name in names):
        split = SplitRows((config.expert_size, config.expert_size))
        stacks = {("gate", "up"): ("gate_up", Stacked(count, split)), ("down",): ("down", Stacked(count))}
    else:
        stacks = {(name,): (name, Stacked(count)) for name in ("gate", "up", "down")}
    stacked = [
        rule(of_all(kind, *layers, experts=count), f"blk.{{i}}.ffn_{name}_exps.{kind}", op)
        for layers, (name, op) in stacks.items()
        for kind in ("weight", "bias")
    ]
    return [*block("blk", _NAMES), gate, *stacked]
