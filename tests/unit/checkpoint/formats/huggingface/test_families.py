"""Maps of config.json: the keys of published models are known, and what is not computed is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onmt_llm.checkpoint.formats.huggingface.read import family_of
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError

LLAMA = {
    **{
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "vocab_size": 99,
    },
    **{"num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "hidden_act": "silu"},
}
PHI3 = {
    **{"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0, "embd_pdrop": 0.0},
    **{"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072},
    **{"initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096, "use_cache": True},
    **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "resid_pdrop": 0.0},
    **{"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1e4},
    **{"sliding_window": 2047, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "attention_bias": False},
    **{"transformers_version": "4.40.2", "vocab_size": 32064, "_name_or_path": "Phi-3-mini-4k-instruct"},
}
ATTENTION = {
    **{"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention"},
    **{"attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None},
}
MPT = {
    **{"model_type": "mpt", "attn_config": ATTENTION, "d_model": 4096, "emb_pdrop": 0, "embedding_fraction": 1.0},
    **{"expansion_ratio": 4, "init_config": {"name": "kaiming_normal_"}, "init_device": "cpu", "n_heads": 32},
    **{"learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048, "n_layers": 32, "no_bias": True},
    **{"norm_type": "low_precision_layernorm", "resid_pdrop": 0, "tokenizer_name": "x", "verbose": 0, "vocab_size": 9},
}
OPT = {
    **{"model_type": "opt", "_remove_final_layer_norm": False, "activation_dropout": 0.0, "ffn_dim": 3072},
    **{"activation_function": "relu", "do_layer_norm_before": True, "dropout": 0.1, "hidden_size": 768},
    **{"init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "num_attention_heads": 12},
    **{"num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272, "word_embed_proj_dim": 768},
}
PHI = {
    **{"model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32},
    **{"num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False},
    **{"rope_scaling": None, "rope_theta": 1e4, "vocab_size": 51200, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
}
GPT_OSS = {
    **{"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "attention_bias": True, "vocab_size": 201088},
    **{"experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "sliding_window": 128},
    **{"initial_context_length": 4096, "intermediate_size": 2880, "num_attention_heads": 64, "num_hidden_layers": 24},
    **{"max_position_embeddings": 131072, "num_experts_per_tok": 4, "num_key_value_heads": 8, "swiglu_limit": 7.0},
    **{"num_local_experts": 32, "output_router_logits": False, "rms_norm_eps": 1e-05, "router_aux_loss_coef": 0.9},
    **{"quantization_config": {"quant_method": "mxfp4"}, "rope_theta": 150000, "tie_word_embeddings": False},
    "rope_scaling": {
        **{"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn", "truncate": False},
        "original_max_position_embeddings": 4096,
    },
}
DEEPSEEK_V2_LITE = {
    **{"model_type": "deepseek_v2", "attention_bias": False, "aux_loss_alpha": 0.001, "ep_size": 1, "seq_aux": True},
    **{"first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944},
    **{"kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1},
    **{"n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_hidden_layers": 27},
    **{"num_attention_heads": 16, "num_experts_per_tok": 6, "num_key_value_heads": 16, "pretraining_tp": 1},
    **{"q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06},
    **{"routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy"},
    **{"rope_theta": 10000, "tie_word_embeddings": False, "v_head_dim": 128, "vocab_size": 102400},
    "rope_scaling": {
        **{"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "type": "yarn"},
        "original_max_position_embeddings": 4096,
    },
}

OPUS_MT = {
    **{"model_type": "marian", "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish"},
    **{"add_bias_logits": False, "add_final_layer_norm": False, "architectures": ["MarianMTModel"], "d_model": 512},
    **{"bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0},
    **{"decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6},
    **{"decoder_start_token_id": 58100, "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8},
    **{"encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0},
    **{"forced_eos_token_id": 0, "id2label": {"0": "LABEL_0"}, "init_std": 0.02, "is_encoder_decoder": True},
    **{"label2id": {"LABEL_0": 0}, "max_length": 512, "max_position_embeddings": 512, "normalize_before": False},
    **{"normalize_embedding": False, "num_beams": 6, "num_hidden_layers": 6, "pad_token_id": 58100},
    **{"scale_embedding": True, "share_encoder_decoder_embeddings": True, "static_position_embeddings": True},
    **{"use_cache": True, "vocab_size": 58101},
}
PEGASUS = {
    **OPUS_MT,
    **{"model_type": "pegasus", "activation_function": "relu", "add_final_layer_norm": True, "normalize_before": True},
    **{"do_blenderbot_90_layernorm": False, "extra_pos_embeddings": 1, "force_bos_token_to_be_generated": False},
    **{"architectures": ["PegasusForConditionalGeneration"], "share_encoder_decoder_embeddings": None},
    **{"decoder_vocab_size": None},
}
MBART = {
    **{**PEGASUS, "model_type": "mbart", "architectures": ["MBartForConditionalGeneration"], "output_past": True},
    **{"normalize_embedding": True, "static_position_embeddings": False, "gradient_checkpointing": False},
}
BART = {
    **{**MBART, "model_type": "bart", "architectures": ["BartForConditionalGeneration"], "prefix": " "},
    **{"add_final_layer_norm": False, "normalize_before": False, "early_stopping": True, "min_length": 56},
}
NLLB = {
    **{**PEGASUS, "model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"], "pad_token_id": 1},
    **{"add_final_layer_norm": None, "normalize_before": None, "static_position_embeddings": None},
    **{"normalize_embedding": None, "tokenizer_class": "NllbTokenizer", "max_length": 200},
}


def read(config: dict[str, Any]) -> ModelConfig:
    return family_of(config).to_model(config)


def test_unknown_keys_are_refused_or_ignored_as_asked(caplog: pytest.LogCaptureFixture) -> None:
    config = {**LLAMA, "some_new_switch": 3}
    with pytest.raises(UnsupportedError, match="some_new_switch") as refused:
        read(config)
    assert "-ignore_unknown" in (refused.value.hint or "")
    assert family_of(config).to_model(config, ignore_unknown=True) == read(LLAMA)
    assert "some_new_switch" in caplog.text


def test_keys_of_published_models() -> None:
    assert read({**LLAMA, "is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1}).num_kv_heads == 3
    assert read(PHI3).sliding_window == 2047
    assert read(MPT).ffn_size == 16384
    assert read(OPT).position == "learned"
    assert read(PHI).rope.rotary_dim == 32
    assert read(OPUS_MT).norm_position == read(BART).norm_position == "post"
    assert read(PEGASUS).norm_position == read(MBART).norm_position == "pre"
    assert read(MBART).embed_norm and read(BART).embed_norm and not read(PEGASUS).embed_norm
    assert read(NLLB).sinusoid == "fairseq"
    oss, lite = read(GPT_OSS), read(DEEPSEEK_V2_LITE)
    assert oss.decoder_types[:3] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert oss.rope.magnitude == pytest.approx(0.1 * math.log(32) + 1)
    assert (lite.head_dim, lite.rotary_size, lite.value_size, lite.moe.shared_size) == (192, 64, 128, 2816)
    assert lite.moe_layers == list(range(1, 27)) and lite.rope.magnitude == 1.0
    assert lite.attention_factor == pytest.approx(192**-0.5 * (0.0707 * math.log(40) + 1) ** 2)


FACTORS = {"short_factor": [1.0] * 48, "long_factor": [4.0] * 48}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {**PHI3, "max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", **FACTORS}},
            {"scaling": "longrope", "factor": 32.0, "original_max_position": 4096, "magnitude": 1.190238},
        ),
        (
            {**PHI3, "max_position_embeddings": 131072, "rope_scaling": {"type": "su", **FACTORS}},
            {"scaling": "longrope", "factor": 32.0, "long_factor": [4.0] * 48},
        ),
        (
            {
                **LLAMA,
                "rope_theta": 1e6,
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            {"scaling": "yarn", "factor": 4.0, "original_max_position": 32768, "theta": 1e6, "magnitude": 1.138629},
        ),
        (
            {**LLAMA, "max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            {"scaling": "dynamic", "factor": 2.0, "original_max_position": 4096, "magnitude": 1.0},
        ),
    ],
)
def test_rotary_scaling_of_published_models(config: dict[str, Any], expected: dict[str, Any]) -> None:
    rope = read(config).rope
    found = {name: getattr(rope, name) for name in expected}
    assert found == {
        **expected,
        **({"magnitude": pytest.approx(expected["magnitude"])} if "magnitude" in expected else {}),
    }


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({**PHI3, "rope_scaling": {"type": "proportional"}}, "'proportional'"),
        ({**LLAMA, "rope_scaling": {"type": "yarn", "factor": 2.0, "mrope_section": [8, 8]}}, "mrope_section"),
        ({**PHI3, "lm_head_bias": True}, "lm_head_bias"),
        ({**PHI, "qk_layernorm": True}, "qk_layernorm"),
        ({**MPT, "attn_config": {**ATTENTION, "clip_qkv": 6}}, "clip_qkv"),
        ({**MPT, "attn_config": {**ATTENTION, "attn_type": "grouped_query_attention"}}, "attn_type"),
        ({**MPT, "attn_config": {**ATTENTION, "rope": True}}, "rope"),
        ({**OPT, "word_embed_proj_dim": 512}, "word_embed_proj_dim"),
        ({**OPT, "do_layer_norm_before": False}, "do_layer_norm_before"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({**LLAMA, "num_experts": 8}, "num_experts"),
        ({**OPUS_MT, "tie_word_embeddings": False}, "tie_word_embeddings"),
        ({**GPT_OSS, "swiglu_limit": 6.0}, "swiglu_limit"),
        ({**GPT_OSS, "hidden_act": "gelu"}, "hidden_act"),
        ({**DEEPSEEK_V2_LITE, "num_key_value_heads": 8}, "num_key_value_heads"),
        ({**DEEPSEEK_V2_LITE, "topk_method": "noaux_tc"}, "topk_method"),
        ({**DEEPSEEK_V2_LITE, "norm_topk_prob": True}, "norm_topk_prob"),
        ({**DEEPSEEK_V2_LITE, "moe_layer_freq": 2}, "moe_layer_freq"),
        ({**NLLB, "tie_word_embeddings": False}, "tie_word_embeddings"),
        ({**NLLB, "pad_token_id": 0}, "pad_token_id"),
        ({**NLLB, "num_experts": 128}, "num_experts"),
        ({**NLLB, "decoder_ffn_dim": 4}, "decoder_ffn_dim"),
        ({**MBART, "normalize_before": False}, "normalize_before"),
        ({**BART, "is_encoder_decoder": False}, "is_encoder_decoder"),
        ({**BART, "normalize_embedding": False}, "normalize_embedding"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(config: dict[str, Any], name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        read(config)


def test_every_rotated_part_of_a_head_survives() -> None:
    """transformers rounds head_dim * partial_rotary_factor down."""
    for head_dim in (8, 64, 80, 96, 100, 128):
        for rotary_dim in range(2, head_dim + 1, 2):
            config = {**PHI, "hidden_size": head_dim * 32, "partial_rotary_factor": None}
            model = read(config).model_copy(
                update={"rope": read(PHI).rope.model_copy(update={"rotary_dim": rotary_dim})}
            )
            written = family_of(PHI).to_hf(model)
            assert int(head_dim * written["partial_rotary_factor"]) == rotary_dim
            assert read(written).rotary_size == rotary_dim
