"""Quantised linear layers: error, gradient, memory."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn import quantized
from onmt_llm.nn.quantized import QUANT_TYPES, Int8Linear, linear_weight, num_parameters, quantize
from onmt_llm.nn.transformer import Transformer

# relative error of the weight, bytes against float32
LIMITS = {"int8": (0.006, 0.30), "bnb_8bit": (0.006, 0.30), "bnb_NF4": (0.11, 0.15), "bnb_FP4": (0.13, 0.15)}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).float().norm() / b.float().norm()).item()


def weight_nbytes(module: nn.Module) -> int:
    """Bytes of memory of the weights, scales and biases in `module`, those hidden in bitsandbytes' states too."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _resident(module)}
    return sum(storages.values())


def _resident(module: nn.Module) -> list[torch.Tensor]:
    tensors = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        weight = getattr(part, "weight", None)
        for holder in (weight, getattr(part, "state", None), getattr(weight, "quant_state", None)):
            tensors += [t for t in getattr(holder, "__dict__", {}).values() if isinstance(t, torch.Tensor)]
        nested = getattr(getattr(weight, "quant_state", None), "state2", None)
        tensors += [t for t in getattr(nested, "__dict__", {}).values() if isinstance(t, torch.Tensor)]
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant_type", LIMITS)
def test_error_gradient_and_memory(quant_type: str, dtype: torch.dtype) -> None:
    if quant_type != "int8":
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    error, memory = LIMITS[quant_type]
    linear = nn.Linear(256, 320).to(dtype)
    box = nn.Sequential(copy.deepcopy(linear))
    assert quantize(box, ["0"], quant_type) == ["0"]
    assert relative(linear_weight(box[0]), linear.weight) < error
    x = torch.randn(2, 40, 256, dtype=dtype, requires_grad=True)
    direction = torch.randn(2, 40, 320, dtype=dtype)
    results = []
    for layer in (box, linear):
        y = layer(x)
        (gradient,) = torch.autograd.grad(y, x, direction)
        results.append((y, gradient))
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert relative(ours, exact) < 1.5 * error
    assert not any(p.requires_grad for p in box.parameters()) and not list(box.buffers())
    assert weight_nbytes(box) <= memory * 4 * sum(p.numel() for p in linear.parameters())
    held = weight_nbytes(box) - 4 * linear.bias.numel()
    assert 0.9 < held / (QUANT_TYPES.get(quant_type).weight_bytes * linear.weight.numel()) < 1.1
    with torch.no_grad():
        assert relative(box.eval()(x[:1, :1]), linear(x[:1, :1])) < 2.5 * error


def test_int8_blocks_and_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 100), torch.randn(5, 48, requires_grad=True)
    layer = Int8Linear(linear.weight, linear.bias)
    exact = x @ layer.dequantize().t() + linear.bias
    (expected,) = torch.autograd.grad(exact.sum(), x)
    for elements in (1 << 20, 48 * 7, 1):
        monkeypatch.setattr(quantized, "_BLOCK_ELEMENTS", elements)
        assert torch.equal(Int8Linear(linear.weight).weight, layer.weight)
        y = layer(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(y, exact, atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)
    half = x.detach().bfloat16()
    with torch.no_grad():
        packed = layer(half)
    assert relative(packed, layer(half)) < 0.01


def test_int8_of_zero_rows_and_outliers() -> None:
    weight = torch.zeros(3, 8)
    weight[1, 2], weight[2] = 1e4, torch.linspace(-1e-6, 1e-6, 8)
    restored = Int8Linear(weight).dequantize()
    assert (restored[0] == 0).all()
    torch.testing.assert_close(restored, weight, rtol=0.005, atol=1e-8)


def test_scales_stay_in_float32_when_the_model_is_cast() -> None:
    layer = Int8Linear(torch.randn(8, 16))
    before = layer.dequantize()
    layer.to(torch.bfloat16)
    assert layer.scale.dtype == torch.float32
    assert torch.equal(layer.dequantize(), before)


def test_full_precision_weights_are_freed() -> None:
    model = Transformer(ModelConfig(vocab_size=20, hidden_size=64, heads=4, ffn_size=128, decoder_layers=2))
    before = weight_nbytes(model.decoder.layers)
    linears = [m for m in model.decoder.layers.modules() if isinstance(m, nn.Linear)]
    matrices, alive = sum(m.weight.nbytes for m in linears), [weakref.ref(m.weight) for m in linears]
    quantize(model, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"], "int8")
    gc.collect()
    assert weight_nbytes(model.decoder.layers) <= before - 0.70 * matrices
    assert len(linears) == 12  # still held here, as by a loader that walks over the modules
    assert not any(weight() is not None for weight in alive)


def test_errors() -> None:
    model = Transformer(ModelConfig(vocab_size=20, hidden_size=16, heads=4, ffn_size=32, decoder_layers=1))
    with pytest.raises(ConfigError, match=r"known quant_type; known are: bnb_8bit, bnb_FP4, bnb_NF4, int8"):
        quantize(model, ["q_proj"], "bnb_8bits")
    with pytest.raises(ConfigError, match="'w_9' matches none"):
        quantize(model, ["w_9"], "int8")
    with pytest.raises(ConfigError, match=r"'decoder.embed_tokens' is a TokenEmbedding"):
        quantize(model, ["q_proj", "embed_tokens"], "int8")
    assert type(model.decoder.layers[0].self_attn.q_proj) is nn.Linear
    with torch.device("meta"):
        empty = Transformer(model.config)
    with pytest.raises(ConfigError, match="is on the meta device"):
        quantize(empty, ["q_proj"], "int8")
    assert QUANT_TYPES.names() == sorted(LIMITS)


@pytest.mark.parametrize("quant_type", ["int8", "bnb_8bit", "bnb_NF4"])
def test_a_quantised_model_has_as_many_parameters_as_before(quant_type: str) -> None:
    if quant_type != "int8":
        pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64, bias=False))
    before = num_parameters(model)
    quantize(model, ["0", "1"], quant_type)
    assert num_parameters(model) == before == 64 * 128 * 2 + 128
