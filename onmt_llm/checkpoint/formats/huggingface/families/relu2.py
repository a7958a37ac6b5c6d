"""Feed-forward layers without a gate and with the square of ReLU: Nemotron and Arcee."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import Family, activation, always, heads, setting
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.ops import Offset
from onmt_llm.checkpoint.formats.rules import Rule, per_layer, rule
from onmt_llm.config.model import ModelConfig

NORMS = {
    "decoder.norm": "model.norm",
    "decoder.layers.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "decoder.layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
}


def nemotron_rules(config: ModelConfig) -> list[Rule]:
    """Its norms multiply by 1 + weight."""
    weights = [rule(f"{ours}.weight", f"{theirs}.weight", Offset(1.0)) for ours, theirs in NORMS.items()]
    return per_layer(llama.rules_but(*weights), config.decoder_layers)


BIASES = (
    setting("attn_bias attn_out_bias", "attention_bias", default=False),
    setting("ffn_bias", "mlp_bias", default=False),
)

NEMOTRON = Family(
    "nemotron",
    "NemotronForCausalLM",
    (
        *llama.SIZES,
        heads(kv="num_key_value_heads", head_dim="head_dim"),
        activation("hidden_act", "relu2"),
        setting("norm_eps", "norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=4096),
        rotary(fraction="partial_rotary_factor", default=0.5),
        *BIASES,
    ),
    nemotron_rules,
    llama.IGNORE,
    models="Nemotron 3 and 4, Minitron",
)
ARCEE = Family(
    "arcee",
    "ArceeForCausalLM",
    (
        *llama.LLAMA_ROWS,
        activation("hidden_act", "relu2"),
        always(ffn_gated=False),
        setting("norm_eps", "rms_norm_eps", default=1e-5),
        setting("max_position", "max_position_embeddings", default=4096),
        *BIASES,
    ),
    llama.rules,
    llama.IGNORE,
    models="AFM 4.5B",
)
