"""StarCoder2: Llama's layers with LayerNorm, without a gate, with biases; a sliding window."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import llama
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    activation,
    block,
    heads,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.layers import window
from onmt_llm.checkpoint.formats.huggingface.families.rotary import rotary
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

FEED_FORWARD = block("model.layers", {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"})


def rules(config: ModelConfig) -> list[Rule]:
    return per_layer(llama.rules_but(*FEED_FORWARD), config.decoder_layers)


STARCODER2 = Family(
    "starcoder2",
    "Starcoder2ForCausalLM",
    (
        *llama.SIZES,
        heads(kv="num_key_value_heads"),
        activation("hidden_act", "gelu_pytorch_tanh"),
        setting("norm_eps", "norm_epsilon", default=1e-5),
        setting("max_position", "max_position_embeddings", default=4096),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        rotary(),
        window(),
        setting("attn_bias attn_out_bias ffn_bias", "use_bias", default=True),
        must_be(norm_type="layer_norm", mlp_type="default", scale_attn_weights=True),
    ),
    rules,
    llama.IGNORE,
    models="StarCoder2",
    harmless=("layer_norm_epsilon", "*attention_softmax_in_fp32"),
)
