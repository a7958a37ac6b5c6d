"""The Transformer against random-weight models of `transformers`, in float32."""

from __future__ import annotations

import re

import pytest
import torch

from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.transformer import Transformer

transformers = pytest.importorskip("transformers")

BOUND = 1e-4
BASE = dict(vocab_size=64, hidden_size=48, heads=6, decoder_layers=2, ffn_size=80)
HF_BASE = dict(vocab_size=64, hidden_size=48, num_attention_heads=6, num_hidden_layers=2)

LLAMA3_ROPE = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
RENAMES = {
    "llama": [
        (r"^model\.norm", "decoder.norm"),
        (r"^model\.", "decoder."),
        (r"input_layernorm", "attn_norm"),
        (r"post_attention_layernorm", "mlp_norm"),
    ],
    "falcon": [
        (r"^transformer\.word_embeddings", "decoder.embed_tokens"),
        (r"^transformer\.ln_f", "decoder.norm"),
        (r"^transformer\.h\.", "decoder.layers."),
        (r"self_attention\.dense", "self_attn.o_proj"),
        (r"self_attention\.query_key_value", "self_attn.qkv"),
        (r"input_layernorm|ln_attn", "attn_norm"),
        (r"post_attention_layernorm|ln_mlp", "mlp_norm"),
        (r"dense_h_to_4h", "up_proj"),
        (r"dense_4h_to_h", "down_proj"),
    ],
    "gpt_neox": [
        (r"^gpt_neox\.embed_in", "decoder.embed_tokens"),
        (r"^gpt_neox\.final_layer_norm", "decoder.norm"),
        (r"^gpt_neox\.layers", "decoder.layers"),
        (r"^embed_out", "lm_head"),
        (r"attention\.dense", "self_attn.o_proj"),
        (r"attention\.query_key_value", "self_attn.qkv"),
        (r"input_layernorm", "attn_norm"),
        (r"post_attention_layernorm", "mlp_norm"),
        (r"dense_h_to_4h", "up_proj"),
        (r"dense_4h_to_h", "down_proj"),
    ],
    "marian": [
        (r"^final_logits_bias", "lm_head.bias"),
        (r"^model\.shared", "decoder.embed_tokens"),
        (r"^model\.", ""),
        (r"self_attn_layer_norm", "attn_norm"),
        (r"encoder_attn_layer_norm", "cross_norm"),
        (r"final_layer_norm", "mlp_norm"),
        (r"encoder_attn", "cross_attn"),
        (r"out_proj", "o_proj"),
        (r"\.fc1", ".mlp.up_proj"),
        (r"\.fc2", ".mlp.down_proj"),
    ],
}

RENAMES["t5"] = [
    (r"^shared", "decoder.embed_tokens"),
    (r"block\.0\.layer\.0\.SelfAttention\.relative_attention_bias", "relative_bias"),
    (r"encoder\.block\.(\d+)\.layer\.1\.(layer_norm|DenseReluDense)", r"encoder.block.\1.layer.2.\2"),
    (r"block\.(\d+)\.layer\.0\.layer_norm", r"layers.\1.attn_norm"),
    (r"block\.(\d+)\.layer\.1\.layer_norm", r"layers.\1.cross_norm"),
    (r"block\.(\d+)\.layer\.2\.layer_norm", r"layers.\1.mlp_norm"),
    (r"block\.(\d+)\.layer\.0\.SelfAttention\.(\w)\.", r"layers.\1.self_attn.\2_proj."),
    (r"block\.(\d+)\.layer\.1\.EncDecAttention\.(\w)\.", r"layers.\1.cross_attn.\2_proj."),
    (r"block\.(\d+)\.layer\.2\.DenseReluDense\.", r"layers.\1.mlp."),
    (r"final_layer_norm", "norm"),
    (r"mlp\.wi_0", "mlp.gate_proj"),
    (r"mlp\.wi_1|mlp\.wi(?=\.)", "mlp.up_proj"),
    (r"mlp\.wo", "mlp.down_proj"),
]
RENAMES["mistral"] = RENAMES["qwen3"] = RENAMES["llama"]


def randomise(model: torch.nn.Module) -> None:
    """Weights large enough for the logits to be of order 1, norms and biases that are not 1 and 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + (1.0 if "norm" in name or "ln_" in name else 0.0) * (parameter.dim() == 1))
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=generator))


def to_ours(reference: torch.nn.Module, config: ModelConfig) -> Transformer:
    """Our model with the reference's weights, built on the meta device and filled as a loader does."""
    with torch.device("meta"):
        model = Transformer(config)
    wanted = set(model.state_dict())
    found = {}
    for name, tensor in reference.state_dict().items():
        for pattern, new in RENAMES[reference.config.model_type]:
            name = re.sub(pattern, new, name)
        if ".qkv." in name:
            groups = config.heads // config.num_kv_heads
            qkv = tensor.unflatten(0, (config.num_kv_heads, groups + 2, config.size_per_head))
            for part, rows in (("q", slice(0, groups)), ("k", [groups]), ("v", [groups + 1])):
                found[name.replace("qkv", f"{part}_proj")] = qkv[:, rows].flatten(0, 2)
        else:
            found[name] = tensor.squeeze(0) if name == "lm_head.bias" else tensor
    found = {name: tensor for name, tensor in found.items() if name in wanted}
    model.load_state_dict(found, strict=True, assign=True)
    return model.eval()


def llama(ours: dict, family: str = "Llama", **theirs) -> tuple[ModelConfig, torch.nn.Module]:
    shape = dict(intermediate_size=80, rms_norm_eps=1e-5, max_position_embeddings=128, attention_bias=False)
    settings = getattr(transformers, f"{family}Config")(**HF_BASE, **{**shape, **theirs})
    reference = getattr(transformers, f"{family}ForCausalLM")(settings)
    rest = dict(norm="rmsnorm", norm_eps=1e-5, activation="silu", ffn_gated=True, position="rotary")
    return ModelConfig(**{**BASE, **rest, **ours}), reference


def falcon(ours: dict, **theirs) -> tuple[ModelConfig, torch.nn.Module]:
    config = transformers.FalconConfig(**HF_BASE, ffn_hidden_size=80, tie_word_embeddings=True, **theirs)
    reference = transformers.FalconForCausalLM(config)
    rest = dict(norm_eps=config.layer_norm_epsilon, activation="gelu", position="rotary", tie_embeddings=True)
    return ModelConfig(**{**BASE, **rest, **ours}), reference


def gpt_neox(ours: dict, **theirs) -> tuple[ModelConfig, torch.nn.Module]:
    config = transformers.GPTNeoXConfig(**HF_BASE, intermediate_size=80, max_position_embeddings=128, **theirs)
    reference = transformers.GPTNeoXForCausalLM(config)
    rest = dict(norm_eps=config.layer_norm_eps, activation="gelu", position="rotary")
    biases = dict(attn_bias=True, attn_out_bias=True, ffn_bias=True)
    return ModelConfig(**{**BASE, **rest, **biases, **ours}), reference


def rope(**settings: float) -> dict:
    return dict(rope=RopeConfig(**settings))


DECODERS = {
    "llama-mha": lambda: llama({}),
    "llama-gqa-theta-tied": lambda: llama(
        dict(kv_heads=2, tie_embeddings=True, **rope(theta=500.0)),
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=500.0),
    ),
    "llama-llama3-rope": lambda: llama(
        dict(kv_heads=3, **rope(theta=100.0, scaling="llama3", original_max_position=16, **LLAMA3_ROPE)),
        num_key_value_heads=3,
        rope_parameters=dict(rope_type="llama3", rope_theta=100.0, original_max_position_embeddings=16, **LLAMA3_ROPE),
    ),
    "llama-linear-rope-biases-head-dim": lambda: llama(
        dict(head_dim=16, attn_bias=True, attn_out_bias=True, **rope(scaling="linear", factor=3.0)),
        head_dim=16,
        attention_bias=True,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=3.0),
    ),
    "mistral-window": lambda: llama(
        dict(kv_heads=2, sliding_window=8), "Mistral", num_key_value_heads=2, sliding_window=8
    ),
    "qwen3-qk-norm": lambda: llama(
        dict(kv_heads=2, head_dim=16, qk_norm=True), "Qwen3", num_key_value_heads=2, head_dim=16
    ),
    "falcon-7b": lambda: falcon(
        dict(kv_heads=1, parallel_residual=True, shared_norm=True),
        new_decoder_architecture=False,
        multi_query=True,
        parallel_attn=True,
        bias=False,
    ),
    "falcon-40b": lambda: falcon(
        dict(kv_heads=2, parallel_residual=True), new_decoder_architecture=True, num_kv_heads=2, bias=False
    ),
    "falcon-rw": lambda: falcon(
        dict(position="alibi", alibi_scaled=True, attn_bias=True, attn_out_bias=True, ffn_bias=True),
        new_decoder_architecture=False,
        multi_query=False,
        parallel_attn=False,
        alibi=True,
        bias=True,
    ),
    "neox-parallel-partial-rotary": lambda: gpt_neox(
        dict(parallel_residual=True, **rope(rotary_dim=4)),
        use_parallel_residual=True,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
    ),
    "neox-sequential": lambda: gpt_neox(
        dict(parallel_residual=False),
        use_parallel_residual=False,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0),
    ),
}


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_decoder_logits(name: str) -> None:
    config, reference = DECODERS[name]()
    randomise(reference.eval())
    model = to_ours(reference, config)
    ids = torch.randint(0, config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = reference(ids).logits
    assert expected.std() > 0.5
    assert (model(ids) - expected).abs().max() <= BOUND

    pad = torch.tensor([0, 7])
    mask = torch.arange(40) >= pad[:, None]
    expected = reference(ids, attention_mask=mask.long(), position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    padded = model(ids, cache=KVCache(2, left_pad_B=pad))
    assert (padded - expected)[mask].abs().max() <= BOUND


@pytest.mark.parametrize("activation", ["relu", "silu"])
@torch.no_grad()
def test_marian_logits(activation: str) -> None:
    shape = dict(vocab_size=64, d_model=48, max_position_embeddings=64, pad_token_id=0, eos_token_id=1)
    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 6), ("ffn_dim", 80))
    }
    reference = transformers.MarianMTModel(
        transformers.MarianConfig(
            **shape, **sizes, scale_embedding=True, activation_function=activation, decoder_start_token_id=0
        )
    )
    randomise(reference.eval())
    config = ModelConfig(
        **{**BASE, "encoder_layers": 2},
        activation=activation,
        norm_position="post",
        norm_eps=1e-5,
        scale_embeddings=True,
        share_embeddings=True,
        tie_embeddings=True,
        attn_bias=True,
        attn_out_bias=True,
        ffn_bias=True,
        lm_head_bias=True,
    )
    model = to_ours(reference, config)
    src, tgt = torch.randint(2, 64, (2, 11)), torch.randint(2, 64, (2, 9))
    mask = torch.arange(11) < torch.tensor([[11], [6]])
    expected = reference(input_ids=src, attention_mask=mask.long(), decoder_input_ids=tgt).logits
    assert (model(src, tgt, src_mask_BS=mask) - expected).abs().max() <= BOUND


@pytest.mark.parametrize(
    ("feed_forward", "ours", "tied"),
    [
        ("relu", dict(activation="relu"), True),
        ("gated-gelu", dict(activation="gelu_tanh", ffn_gated=True), False),
    ],
)
@torch.no_grad()
def test_t5_logits(feed_forward: str, ours: dict, tied: bool) -> None:
    """The original (tied, scaled logits) and version 1.1 (gated, untied)."""
    reference = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=64,
            d_model=48,
            d_kv=10,
            d_ff=80,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=6,
            relative_attention_num_buckets=12,
            relative_attention_max_distance=20,
            feed_forward_proj=feed_forward,
            tie_word_embeddings=tied,
            decoder_start_token_id=0,
        )
    )
    randomise(reference.eval())
    config = ModelConfig(
        **{**BASE, "encoder_layers": 2, "decoder_layers": 3, "head_dim": 10},
        **ours,
        norm="rmsnorm",
        position="t5",
        relative_buckets=12,
        relative_max_distance=20,
        relative_shared=True,
        scale_attention=False,
        share_embeddings=True,
        tie_embeddings=tied,
        scale_logits=tied,
    )
    model = to_ours(reference, config)
    src, tgt = torch.randint(2, 64, (2, 50)), torch.randint(2, 64, (2, 40))
    mask = torch.arange(50) < torch.tensor([[50], [33]])
    expected = reference(input_ids=src, attention_mask=mask.long(), decoder_input_ids=tgt).logits
    assert expected.std() > 0.1
    assert (model(src, tgt, src_mask_BS=mask) - expected).abs().max() <= BOUND

    memory, cache = model.encode(src, mask), KVCache(3)
    pieces = [model.decode(tgt[:, :30], memory, mask, cache=cache)]
    pieces += [model.decode(tgt[:, t : t + 1], None, mask, cache=cache) for t in range(30, 40)]
    assert (model.logits(torch.cat(pieces, dim=1)) - expected).abs().max() <= BOUND
