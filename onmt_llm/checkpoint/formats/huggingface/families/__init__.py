"""Families of Hugging Face architectures: each has a configuration map, weight-name rules and what it can express.

`base` defines `Family`, the rows of its configuration map, and tables of tensor names; `layers`, `rotary` and `keys`
hold what many families share. The other modules are tables: those of Llama's relatives are here, the others in packages
of their own. To add a family, add its table and its entry in `FAMILIES` of its package.
"""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import (
    cohere,
    encoder_decoders,
    gemma,
    gpt,
    interleaved,
    llama,
    mixtures,
    olmo,
    phi,
    relu2,
    stablelm,
    starcoder2,
)
from onmt_llm.checkpoint.formats.huggingface.families.base import Family

FAMILIES: tuple[Family, ...] = (
    llama.LLAMA,
    llama.MISTRAL,
    llama.QWEN2,
    llama.QWEN3,
    llama.SMOLLM3,
    olmo.OLMO2,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    phi.PHI,
    phi.PHI3,
    starcoder2.STARCODER2,
    stablelm.STABLELM,
    llama.GRANITE,
    cohere.COHERE,
    cohere.COHERE2,
    interleaved.ERNIE4_5,
    interleaved.HELIUM,
    interleaved.GLM,
    relu2.NEMOTRON,
    relu2.ARCEE,
    *mixtures.FAMILIES,
    *gpt.FAMILIES,
    *encoder_decoders.FAMILIES,
)
