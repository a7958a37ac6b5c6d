"""Runs that multiply in int8, and those that do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onmt_llm.config.learning import QuantizationConfig
from onmt_llm.nn.cpu import int8_matmul as int8_products
from onmt_llm.nn.quantized import quantize
from onmt_llm.training.setup.performance import set_quant_compute


@pytest.mark.parametrize(
    ("compute", "fast", "expected"),
    [("auto", True, True), ("auto", False, False), ("float", True, False), ("int8", False, True)],
)
def test_the_option_decides_or_the_processor(
    compute: str, fast: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_products, "are_fast", lambda device: fast)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize(model, ["0"], "int8")
    settings = QuantizationConfig(quant_layers=["0"], quant_type="int8", quant_compute=compute)
    set_quant_compute(model, settings, torch.device("cpu"))
    assert model[0].int8_products is expected


def test_other_number_formats_have_no_int8_products() -> None:
    with pytest.raises(ValueError, match="quant_type is bnb_8bit"):
        QuantizationConfig(quant_layers=["q_proj"], quant_compute="int8")
