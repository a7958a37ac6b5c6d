"""Mixtures of experts."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families.base import Family
from onmt_llm.checkpoint.formats.huggingface.families.mixtures import deepseek, gpt_oss, mixtral

FAMILIES: tuple[Family, ...] = (
    mixtral.MIXTRAL,
    mixtral.QWEN3_MOE,
    mixtral.OLMOE,
    mixtral.QWEN2_MOE,
    gpt_oss.GPT_OSS,
    deepseek.DEEPSEEK_V2,
    deepseek.DEEPSEEK_V3,
)
