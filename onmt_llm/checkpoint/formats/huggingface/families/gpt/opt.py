"""OPT: learned positions, whose table begins with two rows that no token reads."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families.base import (
    Family,
    HfConfig,
    Row,
    Values,
    activation,
    always,
    block,
    heads,
    modules,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.ops import DropRows
from onmt_llm.checkpoint.formats.rules import Rule, per_layer
from onmt_llm.config.model import ModelConfig

ENDS = {
    "decoder.embed_tokens": "model.decoder.embed_tokens",
    "decoder.norm": "model.decoder.final_layer_norm",
    "lm_head": "lm_head",
}
NAMES = {
    "attn_norm": "self_attn_layer_norm",
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.k_proj",
    "self_attn.v_proj": "self_attn.v_proj",
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "mlp.up_proj": "fc1",
    "mlp.down_proj": "fc2",
}


def rules(config: ModelConfig) -> list[Rule]:
    positions = modules({"decoder.embed_positions": "model.decoder.embed_positions"}, DropRows(2))
    return per_layer([*modules(ENDS), *positions, *block("model.decoder.layers", NAMES)], config.decoder_layers)


def _read_projection(hf: HfConfig) -> Values:
    """The embedding must be as wide as the layers."""
    must_be(word_embed_proj_dim=hf.get("hidden_size")).read(hf)
    return {}


OPT = Family(
    "opt",
    "OPTForCausalLM",
    (
        setting("decoder_layers", "num_hidden_layers"),
        setting("vocab_size", "vocab_size"),
        heads(),
        Row(("word_embed_proj_dim",), _read_projection, lambda config: {"word_embed_proj_dim": config.hidden_size}),
        setting("ffn_size", "ffn_dim"),
        activation("activation_function", "relu"),
        setting("max_position", "max_position_embeddings", default=2048),
        setting("attn_bias attn_out_bias ffn_bias", "enable_bias", default=True),
        setting("tie_embeddings", "tie_word_embeddings", default=True),
        always(position="learned", norm_eps=1e-5),
        must_be(do_layer_norm_before=True, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True),
    ),
    rules,
    models="OPT, except 350M",
    harmless=("layerdrop", "init_std"),
    older=(("decoder.", "model.decoder."),),
)
