"""The valid part of an invalid section."""

from __future__ import annotations

from onmt_llm.config.data import DataConfig
from onmt_llm.config.learning import ExpansionConfig
from onmt_llm.config.loading.partial import validate_partially
from onmt_llm.config.model import ModelConfig


def test_a_valid_section_is_validated_as_usual() -> None:
    assert validate_partially(ModelConfig, {"heads": 4}) == ModelConfig(heads=4)


def test_values_that_are_invalid_by_themselves_are_dropped() -> None:
    section = validate_partially(ModelConfig, {"heads": 0, "kv_heads": 2, "rope": {"theta": -1, "factor": 2}})
    assert isinstance(section, ModelConfig)
    assert (section.heads, section.kv_heads, section.rope.factor) == (8, 2, 2)
    assert section.rope.theta == 10000


def test_a_corpus_loses_only_its_invalid_values() -> None:
    values = {"data": {"a": {"path_src": "x", "weight": -1}, "b": {"path_sr": "y"}}}
    section = validate_partially(DataConfig, values)
    assert isinstance(section, DataConfig)
    assert section.data["a"].path_src == "x" and section.data["a"].weight == 1
    assert section.data["b"].path_src is None
    assert values["data"]["a"]["weight"] == -1, "the user's values are not changed"


def test_values_that_only_conflict_are_kept() -> None:
    section = validate_partially(ExpansionConfig, {"expand_every": 2, "expand_blocks": [1]})
    assert isinstance(section, ExpansionConfig)
    assert (section.expand_every, section.expand_blocks) == (2, [1])
