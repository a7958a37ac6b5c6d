"""Llama and its relatives: Mistral (sliding window), Qwen2 (biases on q, k, v), Qwen3 (norms of q and k)."""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    heads,
    must_be,
    required,
    setting,
    window,
)
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.names import decoder_rules
from onmt_llm.checkpoint.formats.rules import Rule, overridden, per_layer
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError

RULES = decoder_rules("hf")
"""The names of all modules that a relative of Llama may have; a model uses those of its own."""

IGNORE = ("*.rotary_emb.inv_freq",)

SIZES = (
    setting("decoder_layers", "num_hidden_layers"),
    setting("vocab_size", "vocab_size"),
    setting("ffn_size", "intermediate_size"),
    setting("tie_embeddings", "tie_word_embeddings", default=False),
)
LLAMA_ROWS = (
    *SIZES,
    heads(kv="num_key_value_heads", head_dim="head_dim"),
    activation("hidden_act", "silu"),
    setting("norm_eps", "rms_norm_eps", default=1e-6),
    setting("max_position", "max_position_embeddings", default=2048),
    rotary(),
    always(norm="rmsnorm", ffn_gated=True),
)


def rules(config: ModelConfig) -> list[Rule]:
    return per_layer(RULES, config.decoder_layers)


def rules_but(*others: Rule) -> list[Rule]:
    """Llama's rules, with `others` in place of those for the same tensors of ours; `{i}` is not filled in."""
    return overridden(RULES, others)


def window_of_qwen() -> Row:
    """The sliding window of all layers but the first `max_window_layers`, unless `layer_types` says which."""

    def read(hf: HfConfig) -> Values:
        size = hf.get("sliding_window", 4096)
        if not hf.get("use_sliding_window", False) or size is None:
            return {"sliding_window": None}
        layers, first = int(required(hf, "num_hidden_layers")), int(hf.get("max_window_layers", 28))
        kinds = hf.get("layer_types") or ["full_attention"] * min(first, layers) + ["sliding_attention"] * (
            layers - first
        )
        if len(set(kinds)) > 1:
            raise UnsupportedError(
                "All layers must have the same kind of attention, but layer_types or max_window_layers in config.json "
                f"give {kinds.count('sliding_attention')} of {layers} layers a sliding window."
            )
        return {"sliding_window": size if kinds[0] == "sliding_attention" else None}

    def write(config: ModelConfig) -> Values:
        size = config.sliding_window
        return {"use_sliding_window": size is not None, "sliding_window": size, "max_window_layers": 0}

    keys = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
    return Row(keys, read, write, anything("sliding_window"))


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    (
        *LLAMA_ROWS,
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        setting("ffn_bias", "mlp_bias", default=False),
        must_be(rope_interleaved=False),
    ),
    rules,
    IGNORE,
    models="Llama 1-3, Vicuna, SmolLM2, TinyLlama, Yi, Falcon 3",
    harmless=("max_sequence_length", "is_llama_config"),
)
MISTRAL = Family(
    "mistral", "MistralForCausalLM", (*LLAMA_ROWS, window(default=4096)), rules, IGNORE, models="Mistral 7B, Zephyr"
)
QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    (*LLAMA_ROWS, always(attn_bias=True), window_of_qwen()),
    rules,
    IGNORE,
    models="Qwen 1.5, 2, 2.5",
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    (
        *LLAMA_ROWS,
        heads(kv="num_key_value_heads", head_dim="head_dim", default=128),
        setting("attn_bias attn_out_bias", "attention_bias", default=False),
        always(qk_norm=True),
        window_of_qwen(),
    ),
    rules,
    IGNORE,
    models="Qwen 3, dense",
)
