"""The tables of optimisers, schedules and number formats hold exactly what the options allow."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from onmt_llm.config.section import Section
from onmt_llm.config.train import OptimConfig, QuantizationConfig
from onmt_llm.nn.quantized import QUANT_TYPES
from onmt_llm.training.optim.registry import OPTIMIZERS
from onmt_llm.training.optim.schedule import SCHEDULES


@pytest.mark.parametrize(
    ("section", "option", "table"),
    [
        (OptimConfig, "optim", OPTIMIZERS),
        (OptimConfig, "decay_method", SCHEDULES),
        (QuantizationConfig, "quant_type", {"", *QUANT_TYPES.names()}),
    ],
)
def test_a_table_has_the_values_of_its_option(section: type[Section], option: str, table: Any) -> None:
    assert set(table) == set(get_args(section.model_fields[option].annotation))
