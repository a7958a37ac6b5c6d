"""Options that depend on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from onmt_llm.config.learning import PerformanceConfig, QuantizationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.cpu import int8_matmul
from onmt_llm.nn.quantized import quantize
from onmt_llm.training.setup.performance import check_device, set_quant_compute

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "name"), [({"offload_activations": True}, "offload_activations"), ({"kernels": "liger"}, "kernels")]
)
def test_options_for_a_gpu_are_refused_on_a_cpu(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.* needs a GPU.*the device is cpu"):
        check_device(PerformanceConfig(**options), "cpu")
    check_device(PerformanceConfig(**options), "cuda")


@pytest.mark.parametrize(
    ("quant_compute", "fast", "expected"), [("int8", False, 2), ("auto", True, 2), ("auto", False, 0)]
)
def test_int8_products_are_used_where_they_are_asked_for_or_fast(
    quant_compute: Any, fast: bool, expected: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(int8_matmul, "are_fast", lambda device: fast)
    model = tiny.build(tiny.llama())
    quantize(model, ["q_proj"], "int8")
    with caplog.at_level("INFO", logger="onmt_llm"):
        set_quant_compute(model, QuantizationConfig(quant_type="int8", quant_compute=quant_compute), CPU)
    assert (f"{expected} layers multiply in int8" in caplog.text) is bool(expected)
