"""DeepSeek-V2 and -V3 in GGUF files: latent attention, and experts in groups.

Their keys are those of `config.json` under other names, so the rows of the families read them. llama.cpp computes the
attention with keys and values in their narrow form, so the matrix that widens both is two, one of them transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onmt_llm.checkpoint.export_guard import Check, only, settings
from onmt_llm.checkpoint.formats.huggingface.families.base import Family, HfConfig, Row, Values, block, required
from onmt_llm.checkpoint.formats.huggingface.families.mixtures.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, rotated_rules
from onmt_llm.checkpoint.formats.rules import Rule, rule
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError

_SAME: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "qk_rope_head_dim",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
"""Names of the same settings in GGUF files and in config.json."""
_DEFAULTS: Values = {"first_k_dense_replace": 0, "routed_scaling_factor": 1.0, "norm_topk_prob": False}
"""Values of settings without a key in a GGUF file."""
_WIDTHS = ("attention.key_length_mla", "attention.value_length_mla")
"""Widths of a head of q and k, and of one of v; older files have them without `_mla`."""
_YARN: Mapping[str, str] = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_BASE, _TYPE, _LOG = "rope.freq_base", "rope.scaling.type", "rope.scaling.yarn_log_multiplier"
_GATE = "expert_gating_func"
_SOFTMAX, _SIGMOID = 1, 2


def _read(found: HfConfig) -> Values:
    family = DEEPSEEK_V3 if found.get(_GATE, _SOFTMAX) == _SIGMOID else DEEPSEEK_V2
    hf = {theirs: found.get(key, _DEFAULTS.get(theirs)) for key, theirs in _SAME.items()}
    key, value = (int(found.get(name) or required(found, name.removesuffix("_mla"))) for name in _WIDTHS)
    hf |= {"qk_nope_head_dim": key - int(required(found, "rope.dimension_count")), "v_head_dim": value}
    hf |= {"rope_parameters": _rope_parameters(found), "vocab_size": 0}
    groups = int(hf["n_group"] or 1)
    hf |= {"n_group": groups, "topk_group": int(hf["topk_group"] or 1)}
    if family is DEEPSEEK_V2:
        hf["topk_method"] = "greedy" if groups == 1 else "group_limited_greedy"
    return {name: value for row in family.rows for name, value in row.read(hf).items()}


def _rope_parameters(found: HfConfig) -> Values:
    kind = found.get(_TYPE, "none")
    if kind not in ("none", "yarn"):
        raise UnsupportedError(f"Rotary scaling of deepseek2 must be none or yarn, but is '{kind}'.")
    base = {"rope_theta": found.get(_BASE, 10000.0), "rope_type": "default"}
    if kind == "none":
        return base
    # Published models have two equal factors, of which files store one, divided by 10.
    factor = 10 * found.get(_LOG, 0.0)
    factors = {"mscale": factor, "mscale_all_dim": factor} if factor else {}
    yarn = {theirs: found[key] for key, theirs in _YARN.items() if key in found}
    return {**base, "rope_type": "yarn", **yarn, **factors}


def _write(config: ModelConfig) -> Values:
    hf = _family(config).to_hf(config)
    rope, rank = hf["rope_parameters"], config.latent.kv_rank
    values = {
        **{key: hf[theirs] for key, theirs in _SAME.items() if hf.get(theirs) is not None},
        **{"attention.head_count_kv": 1, "attention.key_length": rank + config.rotary_size},
        "attention.value_length": rank,
        **dict(zip(_WIDTHS, (config.size_per_head, config.value_size), strict=True)),
        _BASE: rope["rope_theta"],
        _GATE: _SIGMOID if config.moe.scoring == "sigmoid" else _SOFTMAX,
    }
    if config.rope.scaling == "yarn":
        values |= {_TYPE: "yarn", **{key: rope[theirs] for key, theirs in _YARN.items() if theirs in rope}}
    if rope.get("mscale_all_dim"):
        values[_LOG] = rope["mscale_all_dim"] / 10
    return values


def _family(config: ModelConfig) -> Family:
    return DEEPSEEK_V3 if config.moe.scoring == "sigmoid" else DEEPSEEK_V2


def _check(name: str) -> Check:
    """The check of the family that the model is of."""
    default = only(settings(ModelConfig())[name])

    def check(value: object, config: ModelConfig) -> str | None:
        return _family(config).expressible.get(name, default)(value, config)

    return check


ROWS = (
    Row(
        (*_SAME, *_WIDTHS, *_YARN, _BASE, _TYPE, _LOG, _GATE, "attention.key_length", "attention.head_count_kv"),
        _read,
        _write,
        {name: _check(name) for name in {**DEEPSEEK_V2.expressible, **DEEPSEEK_V3.expressible}},
    ),
)


@dataclass(frozen=True)
class Widened:
    """Theirs are, for each head, the matrix of keys (kv_rank, key) and that of values (value, kv_rank); ours has the
    rows of both, head after head.

    Attributes:
        heads: Number of heads.
        key: Width of the part of a key that is not rotated.
    """

    heads: int
    key: int

    def forward(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        keys, values = theirs
        return [torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)]

    def backward(self, ours: Sequence[Tensor]) -> list[Tensor]:
        rows = ours[0].unflatten(0, (self.heads, -1))
        return [rows[:, : self.key].transpose(1, 2), rows[:, self.key :]]


def rules(config: ModelConfig, names: Collection[str]) -> list[Rule]:
    """Rules that differ from those of other architectures, with `{i}` for the number of the layer."""
    narrow = {"self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_norm": "attn_q_a_norm"}
    narrow |= {"self_attn.kv_a_norm": "attn_kv_a_norm"}
    wide = "decoder.layers.{i}.self_attn.kv_b_proj.weight"
    if "blk.0.attn_kv_b.weight" in names:
        widened = rule(wide, "blk.{i}.attn_kv_b.weight")
    else:
        op = Widened(config.heads, config.size_per_head - config.rotary_size)
        widened = rule(wide, ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"), op)
    return [
        *block("blk", narrow),
        *rotated_rules(config, "blk", {"q_proj": "attn_q", "q_b_proj": "attn_q_b", "kv_a_proj": "attn_kv_a_mqa"}),
        widened,
        rule("decoder.layers.{i}.mlp.selection.bias", "blk.{i}.exp_probs_b.bias"),
    ]
