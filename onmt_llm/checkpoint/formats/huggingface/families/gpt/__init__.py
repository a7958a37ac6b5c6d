"""GPT-2 and the language models of its time.

They have LayerNorm, a feed-forward layer without a gate, and mostly one matrix for q, k and v.
"""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families.base import Family
from onmt_llm.checkpoint.formats.huggingface.families.gpt import bloom, falcon, gpt2, gpt_neox, gptj, mpt, opt

FAMILIES: tuple[Family, ...] = (
    falcon.FALCON,
    gpt_neox.GPT_NEOX,
    gpt2.GPT2,
    gpt2.GPT_BIGCODE,
    gptj.GPTJ,
    mpt.MPT,
    opt.OPT,
    bloom.BLOOM,
)
