"""Options of training as tests write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onmt_llm.config.section import options_of
from onmt_llm.config.train import TrainConfig

LEAVES = options_of(TrainConfig)


def train_config(sections: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """The options of a run; as in a YAML file, each may stand in any section."""
    grouped: dict[str, dict[str, Any]] = {}
    for section, values in sections.items():
        for name, value in values.items():
            grouped.setdefault(LEAVES[name].section if name in LEAVES else section, {})[name] = value
    return TrainConfig.model_validate(grouped)
