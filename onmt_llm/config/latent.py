"""`LatentConfig`, multi-head latent attention (DeepSeek-AI 2024)."""

from __future__ import annotations

from onmt_llm.config.numbers import Width, WidthOrZero
from onmt_llm.config.section import Section


class LatentConfig(Section):
    """Attention whose keys and values are computed from one narrow vector for each token (DeepSeek-V2).

    `rope.rotary_dim` dimensions of a head have rotary positions; those of the keys are shared by all heads, and come
    from the input itself.
    """

    kv_rank: WidthOrZero = 0
    """Width of the vector from which the keys and values of all heads are computed; 0 = ordinary attention."""
    q_rank: WidthOrZero = 0
    """Width of the vector from which the queries of all heads are computed; 0 = they are computed from the input."""
    value_dim: Width | None = None
    """Width of a head's values; null = `head_dim`, that of its queries and keys."""
