"""Families of Hugging Face architectures: each has a configuration map, weight-name rules and what it can express.

`base` defines `Family`, the rows of its configuration map, and tables of tensor names; the other modules are tables.
To add a family, add its table and its entry in `FAMILIES`.
"""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families import (
    bart,
    bloom,
    cohere,
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    gptj,
    interleaved,
    llama,
    moe,
    mpt,
    olmo,
    opt,
    phi,
    relu2,
    stablelm,
    starcoder2,
    t5,
)
from onmt_llm.checkpoint.formats.huggingface.families.base import Family

FAMILIES: tuple[Family, ...] = (
    llama.LLAMA,
    llama.MISTRAL,
    llama.QWEN2,
    llama.QWEN3,
    llama.SMOLLM3,
    olmo.OLMO2,
    moe.MIXTRAL,
    moe.QWEN3_MOE,
    moe.OLMOE,
    moe.QWEN2_MOE,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    falcon.FALCON,
    phi.PHI,
    phi.PHI3,
    gpt_neox.GPT_NEOX,
    gpt2.GPT2,
    gpt2.GPT_BIGCODE,
    gptj.GPTJ,
    starcoder2.STARCODER2,
    stablelm.STABLELM,
    mpt.MPT,
    opt.OPT,
    bart.M2M100,
    bart.MARIAN,
    bart.MBART,
    bart.BART,
    bart.PEGASUS,
    llama.GRANITE,
    cohere.COHERE,
    cohere.COHERE2,
    bloom.BLOOM,
    t5.T5,
    t5.MT5,
    t5.UMT5,
    interleaved.ERNIE4_5,
    interleaved.HELIUM,
    interleaved.GLM,
    relu2.NEMOTRON,
    relu2.ARCEE,
)
