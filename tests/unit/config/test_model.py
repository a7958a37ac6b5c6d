"""`ModelConfig`: factors that settings give, and settings that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from onmt_llm.config.model import ModelConfig


def test_factors() -> None:
    plain = ModelConfig(hidden_size=64, heads=4)
    assert (plain.attention_factor, plain.embedding_factor, plain.logit_factor) == (0.25, 1.0, 1.0)
    t5 = ModelConfig(hidden_size=64, scale_attention=False, scale_embeddings=True, scale_logits=True)
    assert (t5.attention_factor, t5.embedding_factor, t5.logit_factor) == (1.0, 8.0, 0.125)
    granite = ModelConfig(attention_scale=0.3, embedding_scale=12.0, logit_scale=0.5)
    assert (granite.attention_factor, granite.embedding_factor, granite.logit_factor) == (0.3, 12.0, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_scale": 0.3, "scale_attention": False}, "attention_scale needs scale_attention: true"),
        ({"embedding_scale": 3.0, "scale_embeddings": True}, "embedding_scale needs scale_embeddings: false"),
        ({"logit_scale": 0.5, "scale_logits": True}, "logit_scale needs scale_logits: false"),
        (
            {"encoder_layers": 2, "vocab_size": 8, "src_vocab_size": 9, "share_embeddings": True},
            "share_embeddings needs one vocabulary",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**settings)
