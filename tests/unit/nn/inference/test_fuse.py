"""A model that was changed for inference computes what the plain model computes, under every configuration."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unit.nn.test_transformer import DECODERS, ENCODER_DECODERS

import tiny
from onmt_llm.config.latent import LatentConfig
from onmt_llm.config.mixture import MoEConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.nn.inference import fuse as fusing
from onmt_llm.nn.inference.attention import FusedAttention
from onmt_llm.nn.inference.fuse import RowEmbedding, fuse_for_inference
from onmt_llm.nn.inference.packed import (
    Packed4Linear,
    Packed8Linear,
    Packed16Linear,
    PackedBf16Linear,
    has_bf16_kernels,
    has_packed_kernels,
)
from onmt_llm.nn.inference.position_wise import FusedFeedForward
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.lora.model import add_lora
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer

BOUND = 1e-5
FURTHER: dict[str, dict[str, Any]] = {
    "biases": dict(**tiny.LLAMA, attn_bias=True, attn_out_bias=True, ffn_bias=True, lm_head_bias=True),
    "norm of all heads": dict(**tiny.LLAMA, qk_norm=True, qk_norm_over="all_heads"),
    "layernorm of heads": dict(**tiny.LLAMA, qk_norm=True, qk_norm_type="layernorm"),
    "sinks": dict(**{**tiny.LLAMA, "activation": "clamped_swiglu"}, attention_sinks=True, sliding_window=3),
    "gelu, scales": dict(
        **{**tiny.LLAMA, "activation": "gelu_tanh"}, residual_scale=0.3, logit_scale=0.5, embedding_scale=3.0
    ),
    "experts": dict(**tiny.LLAMA, moe=MoEConfig(experts=4, experts_per_token=2, shared_size=16, shared_gate=True)),
    "latent": dict(
        position="rotary", head_dim=8, rope=RopeConfig(rotary_dim=4), latent=LatentConfig(kv_rank=12, value_dim=6)
    ),
}  # fmt: skip
ALL_DECODERS = {**DECODERS, **FURTHER}
needs_kernels = pytest.mark.skipif(not has_packed_kernels(), reason="torch was built without FBGEMM")


def pair(**changes: Any) -> tuple[Transformer, Transformer]:
    """A model with random norms and biases, and its fused copy."""
    model = tiny.build(tiny.config(**{"vocab_size": 50, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model, fuse_for_inference(copy.deepcopy(model))


def answers(model: Transformer, ids_BT: torch.Tensor, left_pad_B: torch.Tensor | None) -> torch.Tensor:
    """Logits of a prompt of 5 tokens, of 2 more, and of single ones, with rows that change their places."""
    cache = KVCache(model.cache_layers, left_pad_B=left_pad_B)
    parts = [model(ids_BT[:, start:end], cache=cache) for start, end in ((0, 5), (5, 7), (7, 8))]
    cache.reorder(torch.tensor([2, 0]))
    return torch.cat([torch.cat(parts, dim=1)[[2, 0]], model(ids_BT[[2, 0], 8:], cache=cache)], dim=1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ALL_DECODERS)
@torch.inference_mode()
def test_decoders_compute_the_same(name: str, padded: bool) -> None:
    model, fused = pair(**ALL_DECODERS[name])
    ids_BT, pad_B = tiny.token_ids(3, 9), torch.tensor([0, 3, 4])
    if padded:
        ids_BT = torch.stack([F.pad(row[: 9 - n], (n, 0)) for row, n in zip(ids_BT, pad_B.tolist(), strict=True)])
    wanted, found = (answers(one, ids_BT, pad_B if padded else None) for one in (model, fused))
    torch.testing.assert_close(found, wanted, atol=BOUND, rtol=0)
    torch.testing.assert_close(fused(ids_BT), model(ids_BT), atol=BOUND, rtol=0)
    attentions = [layer.self_attn for layer in fused.decoder.layers]  # type: ignore[union-attr]
    assert all(isinstance(one, FusedAttention) for one in attentions) != (name == "latent")


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@torch.inference_mode()
def test_encoder_decoders_compute_the_same(name: str) -> None:
    model, fused = pair(**ENCODER_DECODERS[name])
    src_BS, tgt_BT = tiny.token_ids(3, 6), tiny.token_ids(3, 5, seed=2)
    mask_BS = torch.arange(6) < torch.tensor([[6], [4], [1]])
    found, wanted = [], []
    for one, into in ((model, wanted), (fused, found)):
        memory_BSD = one.encode(src_BS, mask_BS)
        cache = KVCache(one.cache_layers)
        into.append(one.decode(tgt_BT[:, :2], memory_BSD, mask_BS, cache=cache)[:, -1])
        # Two beams of each source share its memory.
        cache.reorder(torch.tensor([0, 0, 1, 1, 2, 2]), cross=False)
        into.append(one.logits(one.decode(tgt_BT[[0, 1, 1, 2, 2, 0], 2:3], None, mask_BS, cache=cache)))
        into += one.decode_with_alignment(tgt_BT, memory_BSD, mask_BS, align=(-1, 0))
    torch.testing.assert_close(found, wanted, atol=BOUND, rtol=0)


@torch.inference_mode()
def test_an_adapter_stays_as_it_is() -> None:
    model = tiny.build(tiny.llama(vocab_size=50)).eval()
    add_lora(model, ["q_proj", "up_proj"], rank=2, alpha=4.0)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            parameter.normal_()
    wanted = model(tiny.token_ids(2, 5))
    torch.testing.assert_close(fuse_for_inference(model)(tiny.token_ids(2, 5)), wanted, atol=BOUND, rtol=0)
    assert not any(isinstance(module, FusedAttention | FusedFeedForward) for module in model.modules())


def rounded(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The model in float32, its weights rounded to a type."""
    return copy.deepcopy(model).to(dtype).float()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "learned", "experts", "biases", "latent"])
@torch.inference_mode()
def test_16_bit_weights_are_computed_in_float32(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing, "has_bf16_kernels", lambda: False)
    model, _ = pair(**ALL_DECODERS[name])
    fused = fuse_for_inference(copy.deepcopy(model).to(dtype))
    assert any(isinstance(module, Packed16Linear) for module in fused.modules())
    found, wanted = (answers(one, tiny.token_ids(3, 9), None) for one in (fused, rounded(model, dtype)))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@needs_kernels
@torch.inference_mode()
def test_a_weight_beyond_float16_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing, "has_bf16_kernels", lambda: False)
    model, _ = pair(**tiny.LLAMA)
    model.decoder.layers[0].mlp.down_proj.weight[0, 0] = 1e6  # type: ignore[union-attr]
    fused = fuse_for_inference(copy.deepcopy(model).bfloat16())
    wanted = rounded(model, torch.bfloat16)(tiny.token_ids(2, 5))
    torch.testing.assert_close(fused(tiny.token_ids(2, 5)), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not has_bf16_kernels(), reason="the processor has no instructions for bf16")
@pytest.mark.parametrize("name", ["llama", "learned", "experts", "biases", "latent"])
@torch.inference_mode()
def test_bf16_weights_are_computed_in_bf16(name: str) -> None:
    model, _ = pair(**ALL_DECODERS[name])
    fused = fuse_for_inference(copy.deepcopy(model).bfloat16())
    assert any(isinstance(module, PackedBf16Linear) for module in fused.modules())
    wanted = rounded(model, torch.bfloat16)(tiny.token_ids(2, 9))
    assert (fused(tiny.token_ids(2, 9)).float() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.skipif(not has_bf16_kernels(), reason="the processor has no instructions for bf16")
@torch.inference_mode()
def test_a_packed_bf16_product_is_that_of_torch() -> None:
    weight, bias = torch.randn(24, 40).bfloat16(), torch.randn(24).bfloat16()
    for shape in ((40,), (1, 40), (2, 3, 40), (0, 40)):
        x = torch.randn(shape).bfloat16()
        for offset in (None, bias):
            found = PackedBf16Linear(weight, offset)(x)
            exact = F.linear(x.float(), weight.float(), None if offset is None else offset.float())
            torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=2**-7)
            assert found.dtype == torch.bfloat16


def in_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """The values that 4 bits and a scale and an offset in bf16 for 32 weights can express."""
    groups = weight.float().unflatten(1, (-1, 32))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 15).bfloat16().float()
    offset = (low + 8 * step).bfloat16().float()
    return (((groups - offset) / step).round().clamp(-8, 7) * step + offset).flatten(1)


@pytest.mark.parametrize("bias", [None, torch.randn(64).bfloat16()])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 3, 96), (70, 96), (0, 96)])
@torch.inference_mode()
def test_a_4_bit_product_is_that_of_the_rounded_weights(shape: tuple[int, ...], bias: torch.Tensor | None) -> None:
    weight, x = torch.randn(64, 96).bfloat16(), torch.randn(shape).bfloat16()
    found = Packed4Linear(weight, bias)(x)
    exact = F.linear(x.float(), in_4_bits(weight), None if bias is None else bias.float())
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=2**-6)


@pytest.mark.skipif(not has_bf16_kernels(), reason="the processor has no instructions for bf16")
@pytest.mark.parametrize("name", ["llama", "learned", "biases"])
@torch.inference_mode()
def test_layers_inside_the_blocks_are_rounded_to_4_bits(name: str) -> None:
    sizes = {"hidden_size": 64, "heads": 4, "ffn_size": 128}
    model, _ = pair(**{**ALL_DECODERS[name], **sizes})
    fused = fuse_for_inference(copy.deepcopy(model).bfloat16(), in_4_bits=True)
    packed = [path for path, module in fused.named_modules() if isinstance(module, Packed4Linear)]
    assert any(path.endswith("o_proj") for path in packed)
    assert not any(isinstance(module, Packed4Linear) for module in [fused.lm_head])
    for path in linear_paths(model):
        layer = model.get_submodule(path)
        layer.weight.copy_(layer.weight.bfloat16())
        if layer.out_features % 64 == 0 and path.startswith("decoder.layers") and "router" not in path:
            layer.weight.copy_(in_4_bits(layer.weight))
    found, wanted = fused(tiny.token_ids(2, 9)).float(), model(tiny.token_ids(2, 9))
    assert (found - wanted).norm() < 0.03 * wanted.norm()


def linear_paths(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if type(module) is nn.Linear]


@needs_kernels
@pytest.mark.parametrize("name", ["llama", "learned", "biases", "experts"])
@torch.inference_mode()
def test_8_bit_weights_are_computed_almost_exactly(name: str) -> None:
    """The rounding of the weights is the same in both models; that of the inputs must be far smaller."""
    model, _ = pair(**ALL_DECODERS[name])
    quantize(model, linear_paths(model), "int8")
    fused = fuse_for_inference(copy.deepcopy(model))
    hidden_BTD, wanted_BTD = (one.decode(tiny.token_ids(3, 9)) for one in (fused, model))
    embedded = fused.decoder.embed_tokens  # type: ignore[union-attr]
    if isinstance(embedded, RowEmbedding):  # tied: the embedding is rounded too
        assert isinstance(fused.lm_head, Packed8Linear)
        torch.testing.assert_close(hidden_BTD, wanted_BTD, atol=0.05, rtol=0)
    else:
        torch.testing.assert_close(hidden_BTD, wanted_BTD, atol=2e-3, rtol=0)


@needs_kernels
@torch.inference_mode()
def test_the_rows_of_an_8_bit_product_do_not_depend_on_each_other() -> None:
    weight = torch.randint(-127, 128, (24, 40), dtype=torch.int8)
    scale, bias = torch.rand(24) + 0.1, torch.randn(24)
    layer = Packed8Linear(weight, scale, bias)
    x_MD = torch.randn(5, 40) * torch.tensor([[1e-3], [1.0], [1e3], [0.0], [1.0]])
    wanted = F.linear(x_MD.double(), weight.double() * scale[:, None].double(), bias.double())
    found = layer(x_MD)
    for row, single in enumerate(x_MD):
        assert torch.equal(layer(single), found[row])
    # An input is rounded to one of 63 levels, and its rest to one of 126 between two levels.
    rounding_M1 = x_MD.abs().amax(dim=1, keepdim=True).double() / (2 * 63 * 126)
    largest = rounding_M1 * (weight.double().abs().sum(dim=1) * scale) + 1e-6 * (1 + wanted.abs())
    assert bool(((found - wanted).abs() <= largest).all()) and torch.equal(found[3], bias)


@needs_kernels
@torch.inference_mode()
def test_the_largest_products_do_not_overflow() -> None:
    """AVX2 adds two products in 16 bits."""
    layer = Packed8Linear(torch.full((8, 64), 127, dtype=torch.int8), torch.ones(8))
    torch.testing.assert_close(layer(torch.full((1, 64), 5.0)), torch.full((1, 8), 64 * 5.0 * 127))
    torch.testing.assert_close(layer(torch.full((1, 64), -5.0)), torch.full((1, 8), -64 * 5.0 * 127))
