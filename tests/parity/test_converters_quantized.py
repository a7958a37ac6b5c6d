"""Quantised Hugging Face weights are decoded to what the libraries that made them decode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
