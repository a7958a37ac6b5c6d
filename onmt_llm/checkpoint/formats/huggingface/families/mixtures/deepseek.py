"""DeepSeek-V2 and -V3: latent attention, and experts of which each token chooses some groups first.

Their first layers have no experts. The rotated part of a head is its last one, with interleaved pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onmt_llm.checkpoint.export_guard import anything, only, where
from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    block,
    must_be,
    required,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.mixtures.experts import (
    HARMLESS,
    expert_width,
    experts_only,
    stacked,
)
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import Chain, InterleavedRotary, RotatedLast
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, repeated, rule
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError

_LAYERS = "model.layers"
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_SAME = ("self_attn.q_a_proj", "self_attn.kv_b_proj", *(f"mlp.experts.{{e}}.{name}" for name in _PROJECTIONS))
_NAMES = {
    **{name: name for name in _SAME},
    "self_attn.q_a_norm": "self_attn.q_a_layernorm",
    "self_attn.kv_a_norm": "self_attn.kv_a_layernorm",
    "mlp.router": "mlp.gate",
    **{f"mlp.shared_expert.{name}": f"mlp.shared_experts.{name}" for name in _PROJECTIONS},
}


def rules(config: ModelConfig) -> list[Rule]:
    rotated = {
        "q_proj": "self_attn.q_proj",
        "q_b_proj": "self_attn.q_b_proj",
        "kv_a_proj": "self_attn.kv_a_proj_with_mqa",
    }
    own = [
        *block(_LAYERS, _NAMES),
        *rotated_rules(config, _LAYERS, rotated),
        rule("decoder.layers.{i}.mlp.selection.bias", f"{_LAYERS}.{{i}}.mlp.gate.e_score_correction_bias"),
    ]
    return per_layer(repeated(llama.rules_but(*own), "{e}", config.moe.experts), config.decoder_layers)


def rotated_rules(config: ModelConfig, theirs: str, names: Mapping[str, str]) -> list[Rule]:
    """Rules of the projections with rotated rows.

    Args:
        config: The model.
        theirs: The path of their blocks.
        names: Their names of `q_proj`, `q_b_proj` and `kv_a_proj`.
    """
    sizes = {name: config.size_per_head for name in names} | {"kv_a_proj": config.latent.kv_rank + config.rotary_size}
    return [
        one
        for name, size in sizes.items()
        for one in block(theirs, {f"self_attn.{name}": names[name]}, _order(config, size))
    ]


def _order(config: ModelConfig, rows: int) -> Chain:
    """Of the rows of each head, or of the one vector from which keys and values come."""
    return Chain((RotatedLast(rows, config.rotary_size), InterleavedRotary(rows, config.rotary_size)))


def _latent() -> Row:
    """The widths of the attention."""

    def read(hf: HfConfig) -> Values:
        heads, width = int(required(hf, "num_attention_heads")), int(required(hf, "hidden_size"))
        size = int(hf.get("qk_nope_head_dim") or 128) + int(hf.get("qk_rope_head_dim") or 64)
        values = int(hf.get("v_head_dim") or 128)
        if hf.get("num_key_value_heads") not in (None, heads):
            raise UnsupportedError(
                f"num_key_value_heads in config.json must be num_attention_heads, {heads}, but is "
                f"{hf['num_key_value_heads']}."
            )
        return {
            **{"hidden_size": width, "heads": heads, "head_dim": None if size * heads == width else size},
            "latent.kv_rank": int(hf.get("kv_lora_rank") or 512),
            "latent.q_rank": int(hf.get("q_lora_rank", 1536) or 0),
            "latent.value_dim": None if values == size else values,
        }

    def write(config: ModelConfig) -> Values:
        sizes = (config.hidden_size, config.heads, config.heads, config.size_per_head - config.rotary_size)
        ranks = config.latent.kv_rank, config.latent.q_rank or None
        return dict(zip(keys, (*sizes, config.rotary_size, config.value_size, *ranks), strict=True))

    keys = (
        *("hidden_size", "num_attention_heads", "num_key_value_heads", "qk_nope_head_dim", "qk_rope_head_dim"),
        *("v_head_dim", "kv_lora_rank", "q_lora_rank"),
    )
    some = where(lambda config: config.latent.kv_rank > 0, ", but the family has latent attention")
    checks = anything("hidden_size", "heads", "head_dim", "latent.q_rank", "latent.value_dim")
    return Row(keys, read, write, {**checks, "latent.kv_rank": some})


def _rotary() -> Row:
    """Rotary positions, whose scaling may also scale the attention (`mscale_all_dim`)."""
    row = rotary()

    def read(hf: HfConfig) -> Values:
        values = row.read(hf)
        rope = values["rope"].model_copy(update={"rotary_dim": int(hf.get("qk_rope_head_dim") or 64)})
        stated = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}.get("mscale_all_dim")
        if rope.scaling == "none" or rope.factor <= 1.0 or not stated:
            return {**values, "rope": rope}
        size = int(hf.get("qk_nope_head_dim") or 128) + rope.rotary_dim
        return {**values, "rope": rope, "attention_scale": size**-0.5 * (1.0 + stated * _growth(rope.factor)) ** 2}

    def write(config: ModelConfig) -> Values:
        written: dict[str, Any] = row.write(config)
        if config.attention_scale is None:
            return written
        growth = math.sqrt(config.attention_scale * math.sqrt(config.size_per_head)) - 1.0
        stated = {"mscale_all_dim": float(f"{growth / _growth(config.rope.factor):.12g}")}
        return {**written, **{key: {**written[key], **stated} for key in ("rope_parameters", "rope_scaling")}}

    def is_expressible(config: ModelConfig) -> bool:
        scale, rope = config.attention_scale, config.rope
        return scale is None or (rope.scaling != "none" and rope.factor > 1.0 and scale > config.size_per_head**-0.5)

    reason = where(is_expressible, ", which the family has only with a scaling of its rotary positions")
    return Row(row.keys, read, write, {**row.checks, **anything("rope.rotary_dim"), "attention_scale": reason})


def _growth(factor: float) -> float:
    """YaRN's factor of q and k for a context that is so many times as long, minus 1."""
    return 0.1 * math.log(factor)


def _dense_layers(default: int) -> Row:
    """The first layers have no experts."""
    key = "first_k_dense_replace"

    def read(hf: HfConfig) -> Values:
        first = hf.get(key)
        layers = int(required(hf, "num_hidden_layers"))
        return {"moe.dense_layers": list(range(min(default if first is None else int(first), layers)))}

    def are_first(config: ModelConfig) -> bool:
        return sorted(config.moe.dense_layers) == list(range(len(config.moe.dense_layers)))

    check = where(are_first, ", but only the first layers can be without experts")
    return Row((key,), read, lambda config: {key: len(config.moe.dense_layers)}, {"moe.dense_layers": check})


def _shared_expert(count: int, size: int) -> Row:
    """The experts that compute all tokens, which are one expert of their total width."""
    keys = ("n_shared_experts", "moe_intermediate_size")

    def read(hf: HfConfig) -> Values:
        width = int(hf.get(keys[0]) or count) * int(hf.get(keys[1]) or size)
        return {"moe.shared_size": width, "moe.shared_gate": False}

    def is_multiple(config: ModelConfig) -> bool:
        return config.moe.shared_size > 0 and config.moe.shared_size % config.expert_size == 0

    check = where(is_multiple, ", but must be a multiple of moe.expert_size")
    return Row(
        keys,
        read,
        lambda config: {keys[0]: config.moe.shared_size // config.expert_size},
        {"moe.shared_size": check, "moe.shared_gate": only(False)},
    )


def _groups_of_v2() -> Row:
    keys = ("topk_method", "n_group", "topk_group")

    def read(hf: HfConfig) -> Values:
        method = hf.get("topk_method") or "greedy"
        if method == "greedy":
            return {"moe.groups": 1, "moe.groups_per_token": 1}
        if method != "group_limited_greedy":
            raise UnsupportedError(
                f"topk_method in config.json must be greedy or group_limited_greedy, but is '{method}'."
            )
        return {"moe.groups": int(required(hf, "n_group")), "moe.groups_per_token": int(required(hf, "topk_group"))}

    def write(config: ModelConfig) -> Values:
        method = "greedy" if config.moe.groups == 1 else "group_limited_greedy"
        return dict(zip(keys, (method, config.moe.groups, config.moe.groups_per_token), strict=True))

    return Row(keys, read, write, anything("moe.groups", "moe.groups_per_token"))


def _rows(*, layers: int, shared: tuple[int, int], per_token: int) -> tuple[Row, ...]:
    """The rows of both.

    Args:
        layers: Default number of layers without experts.
        shared: Defaults of the number of shared experts and of the width of an expert.
        per_token: Default number of experts of a token.
    """
    return (
        *llama.SIZES,
        _latent(),
        _rotary(),
        activation("hidden_act", "silu"),
        setting("norm_eps", "rms_norm_eps", default=1e-6),
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        setting("moe.experts_per_token", "num_experts_per_tok", default=per_token),
        expert_width(shared[1]),
        _shared_expert(*shared),
        _dense_layers(layers),
        must_be(moe_layer_freq=1),
    )


_HARMLESS = (*HARMLESS, "head_dim", "qk_head_dim", "ep_size", "aux_loss_alpha", "seq_aux")
_ALWAYS = {"norm": "rmsnorm", "ffn_gated": True, "moe.balance_loss": 0.0}

DEEPSEEK_V2 = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    (
        *_rows(layers=0, shared=(2, 1407), per_token=6),
        experts_only("n_routed_experts", "num_experts", default=64),
        setting("max_position", "max_position_embeddings", default=2048),
        setting("moe.routed_scale", "routed_scaling_factor", default=1.0),
        _groups_of_v2(),
        always(**_ALWAYS, **{"moe.normalize_weights": False}),
        must_be(norm_topk_prob=False, scoring_func="softmax", mlp_bias=False),
    ),
    rules,
    llama.IGNORE,
    models="DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2",
    harmless=_HARMLESS,
    others=stacked,
)
DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    (
        *_rows(layers=3, shared=(1, 2048), per_token=8),
        experts_only("n_routed_experts", "num_local_experts", default=256),
        setting("max_position", "max_position_embeddings", default=4096),
        setting("moe.routed_scale", "routed_scaling_factor", default=2.5),
        setting("moe.groups", "n_group", default=8),
        setting("moe.groups_per_token", "topk_group", default=4),
        setting("moe.normalize_weights", "norm_topk_prob", default=True),
        always(**_ALWAYS, **{"moe.scoring": "sigmoid", "moe.selection_bias": True}),
        must_be(rope_interleave=True, topk_method="noaux_tc", scoring_func="sigmoid"),
        Row(
            ("num_nextn_predict_layers", "num_mtp_layers"),
            lambda hf: {},
            lambda config: {"num_nextn_predict_layers": 0},
        ),
    ),
    rules,
    (*llama.IGNORE, "model.layers.61.*"),
    models="DeepSeek-V3, DeepSeek-R1, Moonlight; without the layers that predict further tokens",
    harmless=_HARMLESS,
    others=stacked,
)
