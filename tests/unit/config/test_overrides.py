"""The user's architecture options on top of those of a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from onmt_llm.config.model import ModelConfig
from onmt_llm.config.overrides import apply_overrides, check_task, conflicts, differences, with_values
from onmt_llm.errors import ConfigError

PATH = Path("run/m")
STORED = ModelConfig(hidden_size=64, heads=4, vocab_size=100, position="rotary", decoder_layers=2)


def test_options_that_are_not_set_do_not_differ() -> None:
    assert differences(STORED, ModelConfig()) == []
    assert apply_overrides(STORED, ModelConfig(), override=False, path=PATH) is STORED


def test_two_spellings_of_one_architecture_are_equal() -> None:
    wanted = ModelConfig(hidden_size=64, heads=4, kv_heads=4, head_dim=16, dtype="bf16")
    assert differences(STORED, wanted) == []


def test_nested_options_are_compared_one_by_one() -> None:
    wanted = ModelConfig.model_validate({"rope": {"theta": 5000.0}, "heads": 8})
    assert differences(STORED, wanted) == [("heads", 8, 4), ("rope.theta", 5000.0, 10000.0)]
    sentences = [problem.sentence for problem in conflicts(STORED, wanted, PATH)]
    assert sentences[1] == "rope.theta must be 10000.0, as in the checkpoint run/m, but is 5000.0."


def test_all_differences_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(STORED, ModelConfig(heads=8, decoder_layers=3), override=False, path=PATH)
    assert "heads must be 4" in str(caught.value) and "decoder_layers must be 2" in str(caught.value)


def test_overrides_replace_stored_values_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    wanted = ModelConfig.model_validate({"rope": {"theta": 5000.0}, "dtype": "bf16"})
    with caplog.at_level(logging.WARNING):
        merged = apply_overrides(STORED, wanted, override=True, path=PATH)
    assert (merged.rope.theta, merged.dtype, merged.hidden_size) == (5000.0, "fp32", 64)
    assert "rope.theta is 5000.0 instead of the checkpoint's 10000.0" in caplog.text


def test_overrides_must_fit_the_stored_architecture() -> None:
    with pytest.raises(ConfigError, match=r"heads must be a multiple of kv_heads, but is 4 .* of run/m"):
        apply_overrides(STORED, ModelConfig(kv_heads=8), override=True, path=PATH)


def test_nested_values_are_merged() -> None:
    assert with_values(STORED, {"rope.theta": 1.0}) == with_values(STORED, {"rope": {"theta": 1.0}})
    with pytest.raises(ValidationError):
        with_values(STORED, {"heads": 7})


def test_the_checkpoint_determines_the_task() -> None:
    assert check_task(None, STORED, PATH) == check_task("lm", STORED, PATH) == "lm"
    assert check_task(None, ModelConfig(encoder_layers=1), PATH) == "seq2seq"
    with pytest.raises(ConfigError, match="must mean lm, since run/m is a language model, but means seq2seq"):
        check_task("seq2seq", STORED, PATH)
