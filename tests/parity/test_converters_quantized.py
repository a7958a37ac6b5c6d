"""Quantised Hugging Face weights are decoded to what the libraries that made them decode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.errors import UnsupportedError

Tensors = dict[str, Tensor]
Quantize = Callable[[str, Tensor], tuple[Tensors, Tensor]]
"""(name, weight) -> what is stored, and what it stands for."""


def bnb_4bit(kind: str, nested: bool) -> Quantize:
    def quantize(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        functional = pytest.importorskip("bitsandbytes").functional
        packed, state = functional.quantize_4bit(
            weight.bfloat16(), blocksize=64, compress_statistics=nested, quant_type=kind
        )
        parts = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {name: packed, **parts}, functional.dequantize_4bit(packed, state, quant_type=kind)

    return quantize


def bnb_8bit(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    functional = pytest.importorskip("bitsandbytes").functional
    stored, largest, _ = functional.int8_vectorwise_quant(weight.half())
    stem = name.removesuffix(".weight")
    parts = {f"{stem}.SCB": largest, f"{stem}.weight_format": torch.zeros((), dtype=torch.uint8)}
    return {name: stored, **parts}, functional.int8_vectorwise_dequant(stored, largest)


def fp8_blocks(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    rows, columns = -(-weight.shape[0] // 20), -(-weight.shape[1] // 12)
    scale = 0.01 + torch.rand(rows, columns)
    stored = (weight * 50).to(torch.float8_e4m3fn)
    decoded = module._dequantize_fp8_weight(stored, scale, [20, 12], torch.float32)
    return {name: stored, f"{name}_scale_inv": scale}, decoded


def scaled(dtype: torch.dtype, shape: Callable[[Tensor], tuple[int, ...]]) -> Quantize:
    def quantize(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        stored, scale = (weight * 50).to(dtype), 0.01 + torch.rand(shape(weight))
        inputs = f"{name.removesuffix('.weight')}.input_scale"
        factors = scale.repeat_interleave(weight.shape[1] // scale.shape[-1], -1)
        return {name: stored, f"{name}_scale": scale, inputs: torch.ones(1)}, stored.float() * factors

    return quantize


def words(codes: Tensor, bits: int) -> Tensor:
    """Each column of codes as a stream of bits, from the lowest of the first 32-bit word."""
    columns = codes.shape[1]
    each = np.unpackbits(codes.to(torch.uint8).numpy()[:, None], axis=1, bitorder="little", count=bits)
    stream = each.reshape(-1, columns)
    stream = np.concatenate([stream, np.zeros((-len(stream) % 32, columns), np.uint8)])
    packed = np.packbits(stream, axis=0, bitorder="little").reshape(-1, 4, columns)
    return torch.from_numpy(packed.transpose(0, 2, 1).copy().view(np.int32)[..., 0])


def groups_of(inputs: int, size: int, in_order: bool) -> Tensor:
    """The group of each input."""
    groups = torch.arange(inputs) // (inputs if size == -1 else size)
    return groups if in_order else groups[torch.randperm(inputs)]


def codes_and_scales(weight: Tensor, bits: int, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random codes (inputs, outputs), zeros and scales (groups, outputs), and what they stand for."""
    (outputs, inputs), count = weight.shape, int(groups.max()) + 1
    codes, zeros = torch.randint(2**bits, (inputs, outputs)), torch.randint(2**bits, (count, outputs))
    scales = (0.01 + torch.rand(count, outputs)).half()
    return codes, zeros, scales, ((codes - zeros[groups]) * scales[groups].float()).t()


def gptq(bits: int, size: int = 16, *, stored_zero: int = -1, in_order: bool = True, listed: bool = True) -> Quantize:
    def quantize(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        groups = groups_of(weight.shape[1], size, in_order)
        codes, zeros, scales, decoded = codes_and_scales(weight, bits, groups)
        stored = (zeros + stored_zero) % 2**bits
        stem = name.removesuffix("weight")
        parts = {f"{stem}qweight": words(codes, bits), f"{stem}qzeros": words(stored.t(), bits).t().contiguous()}
        parts |= {f"{stem}scales": scales, **({f"{stem}g_idx": groups.int()} if listed else {})}
        return parts, decoded

    return quantize


def awq(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    codes, zeros, scales, decoded = codes_and_scales(weight, 4, groups_of(weight.shape[1], 32, True))
    stem = name.removesuffix("weight")

    def pack(one: Tensor) -> Tensor:
        eight = one.reshape(len(one), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        packed = (eight << torch.arange(0, 32, 4)).sum(-1)
        return torch.where(packed >= 2**31, packed - 2**32, packed).int()

    return {f"{stem}qweight": pack(codes), f"{stem}qzeros": pack(zeros), f"{stem}scales": scales}, decoded


def pack_quantized(bits: int, *, zeros_stored: bool) -> Quantize:
    def quantize(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        groups = groups_of(weight.shape[1], 32, True)
        codes, zeros, scales, decoded = codes_and_scales(weight, bits, groups)
        if not zeros_stored:
            decoded = ((codes - 2 ** (bits - 1)) * scales[groups].float()).t()
        parts = {f"{name}_packed": words(codes, bits).t().contiguous(), f"{name}_scale": scales.t().contiguous()}
        parts |= {f"{name}_shape": torch.tensor(weight.shape)}
        return {**parts, **({f"{name}_zero_point": words(zeros.t(), bits)} if zeros_stored else {})}, decoded

    return quantize


METHODS: dict[str, tuple[dict[str, Any], Quantize]] = {
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, bnb_4bit("nf4", False)),
    "nf4, nested": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, bnb_4bit("nf4", True)),
    "fp4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, bnb_4bit("fp4", False)),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_8bit),
    "fp8, blocks": ({"quant_method": "fp8", "weight_block_size": [20, 12]}, fp8_blocks),
    "fp8, tensor": ({"quant_method": "fp8"}, scaled(torch.float8_e4m3fn, lambda _: (1,))),
    "fp8, rows": ({"quant_method": "compressed-tensors"}, scaled(torch.float8_e4m3fn, lambda w: (len(w), 1))),
    "int8, groups": (
        {"quant_method": "compressed-tensors"},
        scaled(torch.int8, lambda w: (len(w), w.shape[1] // 16)),
    ),
    "GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 16}, gptq(4)),
    "GPTQ, no list of groups": ({"quant_method": "gptq", "bits": 8, "group_size": 16}, gptq(8, listed=False)),
    "GPTQ, 3 bits": ({"quant_method": "gptq", "bits": 3, "group_size": 16}, gptq(3)),
    "GPTQ, 2 bits, one group": ({"quant_method": "gptq", "bits": 2, "group_size": -1}, gptq(2, -1)),
    "GPTQ, act-order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
        gptq(4, in_order=False),
    ),
    "GPTQ, second version": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2"},
        gptq(4, stored_zero=0),
    ),
    "AWQ": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq),
    "packed": ({"quant_method": "compressed-tensors"}, pack_quantized(4, zeros_stored=False)),
    "packed, zeros": ({"quant_method": "compressed-tensors"}, pack_quantized(8, zeros_stored=True)),
    "int8, rows": ({"quant_method": "compressed-tensors"}, scaled(torch.int8, lambda w: (len(w), 1))),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantized")
    # bitsandbytes 0.50 decodes on the CPU wrongly where rows are shorter than its blocks of 64
    model = tiny.llama(hidden_size=64, ffn_size=128)
    ours = tiny.write_checkpoint(directory / "ours", model, tokenizer=TokenizerSpec(kind="none"))
    return export_hf(ours, directory / "hf")


def write(plain: Path, folder: Path, settings: dict[str, Any], quantize: Quantize) -> Tensors:
    """Write the model with quantised matrices in its blocks; returns what these stand for."""
    folder.mkdir()
    stored, decoded = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if "proj" in name:
            parts, decoded[name] = quantize(name, weight)
            stored.update(parts)
        else:
            stored[name] = weight
    save_file(stored, folder / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return decoded


@pytest.mark.parametrize("method", METHODS)
def test_decoded_weights(plain: Path, tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = write(plain, tmp_path / "hf", *METHODS[method])
    with caplog.at_level("WARNING"):
        convert(tmp_path / "hf", tmp_path / "ours", tokenizer_model="none")
    assert "14 weights are quantised with" in caplog.text
    export_hf(tmp_path / "ours", tmp_path / "back")
    found = load_file(tmp_path / "back/model.safetensors")
    for name, weight in expected.items():
        tolerance = 2**-8 if weight.dtype == torch.bfloat16 else 1e-6  # the library rounds its result
        torch.testing.assert_close(found[name], weight.float(), rtol=tolerance, atol=1e-7)


def test_scales_that_do_not_fit_are_refused(plain: Path, tmp_path: Path) -> None:
    def quantize(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        return {name: weight.to(torch.int8), f"{name}_scale": torch.ones(7, 5)}, weight

    write(plain, tmp_path / "hf", {"quant_method": "compressed-tensors"}, quantize)
    with pytest.raises(UnsupportedError, match="quantised with compressed-tensors"):
        convert(tmp_path / "hf", tmp_path / "ours", tokenizer_model="none")
