"""Features that not every engine supports."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.generate import ALL_FEATURES, SOURCE_FEATURES, Feature, GenerationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.engine import check_supported


def asked(**options: Any) -> set[Feature]:
    return GenerationConfig(**options).requested_features()


def test_the_default_asks_for_nothing() -> None:
    assert asked() == set()


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({"length_penalty": "wu"}, set()),
        ({"beam_size": 2, "length_penalty": "wu"}, {"length_penalty: wu"}),
        ({"beam_size": 2, "length_penalty": "avg", "alpha": 1.0}, set()),
        ({"beam_size": 2, "length_penalty": "avg", "alpha": 0.6}, {"alpha"}),
        ({"beam_size": 2, "ratio": 0.5}, {"ratio"}),
        ({"coverage_penalty": "summary", "stepwise_penalty": True}, {"coverage_penalty: summary", "stepwise_penalty"}),
        ({"ignore_when_blocking": ["."]}, set()),
        ({"ignore_when_blocking": ["."], "block_ngram_repeat": 2}, {"ignore_when_blocking"}),
        ({"presence_penalty": 0.0, "frequency_penalty": -0.5}, {"frequency_penalty"}),
        ({"presence_penalty": 1}, {"presence_penalty"}),
        ({"replace_unk": True, "report_align": True}, {"replace_unk", "report_align"}),
    ],
)
def test_an_option_asks_for_its_feature_where_it_has_an_effect(options: dict[str, Any], features: set[str]) -> None:
    assert asked(**options) == features


def test_a_call_asks_for_prefixes() -> None:
    assert GenerationConfig().requested_features(prefixes=True) == {"tgt_file_prefix"}


def test_features_of_sources_are_features() -> None:
    assert SOURCE_FEATURES < ALL_FEATURES


def test_missing_features_are_named_together() -> None:
    check_supported({"ratio"}, ALL_FEATURES, engine="engine: py", hint="")
    with pytest.raises(ConfigError, match="those of engine: ct2, which has no ratio, stepwise_penalty") as error:
        check_supported({"stepwise_penalty", "alpha", "ratio"}, {"alpha"}, engine="engine: ct2", hint="use py")
    assert error.value.hint == "use py"
