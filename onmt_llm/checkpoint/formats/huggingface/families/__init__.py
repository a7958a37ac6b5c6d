"""Families of Hugging Face architectures: each has a configuration map, weight-name rules and what it can express.

`base` defines `Family`; `llama` (with Mistral and Qwen2) and `falcon` are tables. To add a family, add a module and its
entry in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onmt_llm.checkpoint.export_guard import obstacles
from onmt_llm.checkpoint.formats.huggingface.families import falcon, llama
from onmt_llm.checkpoint.formats.huggingface.families.base import Family
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import UnsupportedError

FAMILIES: tuple[Family, ...] = (llama.LLAMA, llama.MISTRAL, llama.QWEN2, falcon.FALCON)


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family that a Hugging Face `config.json` belongs to.

    Raises:
        UnsupportedError: The family is not supported.
    """
    model_type = hf_config.get("model_type")
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise UnsupportedError(f"model_type in config.json must be one of {known}, but is '{model_type}'.")


def family_for_export(config: ModelConfig) -> Family:
    """The first family that can express `config` exactly.

    Raises:
        UnsupportedError: None can; the message lists every family's obstacles.
    """
    reasons = []
    for family in FAMILIES:
        found = obstacles(config, family.expressible)
        if not found:
            return family
        reasons.append(f"{family.model_type}: {', '.join(found)}")
    raise UnsupportedError("No Hugging Face architecture expresses this model (" + "; ".join(reasons) + ").")
