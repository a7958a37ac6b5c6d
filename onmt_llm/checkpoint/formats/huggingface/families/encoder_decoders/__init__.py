"""Encoder-decoders."""

from __future__ import annotations

from onmt_llm.checkpoint.formats.huggingface.families.base import Family
from onmt_llm.checkpoint.formats.huggingface.families.encoder_decoders import bart, t5

FAMILIES: tuple[Family, ...] = (
    bart.M2M100,
    bart.MARIAN,
    bart.MBART,
    bart.BART,
    bart.PEGASUS,
    t5.T5,
    t5.MT5,
    t5.UMT5,
)
