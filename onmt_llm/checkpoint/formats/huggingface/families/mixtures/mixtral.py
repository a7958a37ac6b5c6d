"""Mixtures of experts: Mixtral, Qwen3-MoE, OLMoE and Qwen2-MoE, which are Llama's relatives with experts.

On the hub every expert has tensors of its own; transformers 5 may also write those of all experts of a layer as one.
"""

from __future__ import annotations

from collections.abc import Callable

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    always,
    block,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import window, window_of_qwen2_moe
from onmt_llm.checkpoint.formats.huggingface.families.mixtures.experts import HARMLESS, expert_width, experts, stacked
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, repeated
from onmt_llm.config.model import ModelConfig

OF_MIXTRAL = block(
    "model.layers",
    {
        "mlp.router": "block_sparse_moe.gate",
        "mlp.experts.{e}.gate_proj": "block_sparse_moe.experts.{e}.w1",
        "mlp.experts.{e}.up_proj": "block_sparse_moe.experts.{e}.w3",
        "mlp.experts.{e}.down_proj": "block_sparse_moe.experts.{e}.w2",
    },
)
OF_QWEN = block(
    "model.layers",
    {
        "mlp.router": "mlp.gate",
        "mlp.experts.{e}.gate_proj": "mlp.experts.{e}.gate_proj",
        "mlp.experts.{e}.up_proj": "mlp.experts.{e}.up_proj",
        "mlp.experts.{e}.down_proj": "mlp.experts.{e}.down_proj",
        "mlp.shared_gate": "mlp.shared_expert_gate",
        "mlp.shared_expert.gate_proj": "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj": "mlp.shared_expert.up_proj",
        "mlp.shared_expert.down_proj": "mlp.shared_expert.down_proj",
    },
)


def rules_with(experts: list[Rule]) -> Callable[[ModelConfig], list[Rule]]:
    """Llama's rules, with those of experts."""

    def rules(config: ModelConfig) -> list[Rule]:
        return per_layer(repeated([*llama.RULES, *experts], "{e}", config.moe.experts), config.decoder_layers)

    return rules


def _sparse_layers() -> Row:
    """Which layers have experts: every `decoder_sparse_step`-th, but none of `mlp_only_layers`."""

    def read(hf: HfConfig) -> Values:
        step, dense = int(hf.get("decoder_sparse_step") or 1), hf.get("mlp_only_layers") or []
        layers = range(int(hf.get("num_hidden_layers") or 0))
        return {"moe.dense_layers": [layer for layer in layers if layer in dense or (layer + 1) % step]}

    def write(config: ModelConfig) -> Values:
        return {"decoder_sparse_step": 1, "mlp_only_layers": config.moe.dense_layers}

    return Row(("decoder_sparse_step", "mlp_only_layers"), read, write, anything("moe.dense_layers"))


def _shared_expert() -> Row:
    """The expert of all tokens, which no model of the family is without."""
    size = setting("moe.shared_size", "shared_expert_intermediate_size", default=5632)
    some = where(lambda config: config.moe.shared_size > 0, ", but the family has a shared expert")
    return Row(size.keys, size.read, size.write, {"moe.shared_size": some})


QWEN_ROWS = (
    *llama.LLAMA_ROWS,
    setting("moe.normalize_weights", "norm_topk_prob", default=False),
    _sparse_layers(),
)

MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    (
        *llama.LLAMA_ROWS,
        *experts("num_local_experts", "num_experts", defaults=(8, 2)),
        setting("norm_eps", "rms_norm_eps", default=1e-5),
        always(**{"moe.normalize_weights": True}),
        window(),
        must_be(router_jitter_noise=0.0),
    ),
    rules_with(OF_MIXTRAL),
    llama.IGNORE,
    models="Mixtral 8x7B, 8x22B",
    harmless=HARMLESS,
    others=stacked,
)
QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    (
        *QWEN_ROWS,
        *experts("num_experts", "num_local_experts", defaults=(128, 8)),
        expert_width(default=768),
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        always(qk_norm=True),
        window(default=4096, switch="use_sliding_window"),
    ),
    rules_with(OF_QWEN),
    llama.IGNORE,
    models="Qwen3-30B-A3B, Qwen3-235B-A22B",
    harmless=(*HARMLESS, "max_window_layers"),
    others=stacked,
)
OLMOE = Family(
    "olmoe",
    "OlmoeForCausalLM",
    (
        *llama.LLAMA_ROWS,
        *experts("num_experts", "num_local_experts", defaults=(64, 8), balance=0.01),
        setting("norm_eps", "rms_norm_eps", default=1e-5),
        setting("moe.normalize_weights", "norm_topk_prob", default=False),
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        always(qk_norm=True, qk_norm_over="all_heads"),
        must_be(clip_qkv=None),
    ),
    rules_with(OF_QWEN),
    llama.IGNORE,
    models="OLMoE-1B-7B",
    harmless=HARMLESS,
    others=stacked,
)
QWEN2_MOE = Family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    (
        *QWEN_ROWS,
        *experts("num_experts", "num_local_experts", defaults=(60, 4)),
        expert_width(default=1408),
        _shared_expert(),
        setting("attn_bias", "qkv_bias", default=True),
        window_of_qwen2_moe(),
    ),
    rules_with(OF_QWEN),
    llama.IGNORE,
    models="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    harmless=HARMLESS,
    others=stacked,
)
