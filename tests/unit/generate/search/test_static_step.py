"""Steps of fixed size equal the steps that grow with the answer, for every kind of model that allows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from onmt_llm.generate.search import static_step
from onmt_llm.generate.search.state import Decoding
from onmt_llm.nn.static_cache import can_be_static

MODELS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "grouped heads": {"heads": 4, "kv_heads": 2},
    "window": {"sliding_window": 6},
    "mixed layers": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "sinks": {"attention_sinks": True},
    "soft cap": {"attention_softcap": 5.0},
    "alibi": {"position": "alibi"},
    "sinusoidal": {"position": "sinusoidal"},
    "learned": {"position": "learned", "max_position": 64},
    "shaw": {"position": "shaw", "relative_positions": 4},
    "t5": {"position": "t5"},
    "latent": {"kv_heads": 4, "latent": {"kv_rank": 8}, "head_dim": 16, "rope": {"rotary_dim": 4}},
}
DYNAMIC: dict[str, dict[str, Any]] = {
    "frequencies": {"rope": {"scaling": "dynamic", "factor": 2.0, "original_max_position": 16}},
    "scaled alibi": {"position": "alibi", "alibi_scaled": True},
    "short table": {"position": "learned", "max_position": 63},
    "encoder": {"encoder_layers": 1},
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]


def logits(model: Any, prompts: list[list[int]], *, static_steps: bool, steps: int = 8) -> torch.Tensor:
    with torch.inference_mode():
        decoding = Decoding([model], prompts, static_steps=static_steps)
        found = [decoding.logits_RV]
        for step in range(steps):
            decoding.step([(11 * row + 3 * step + 4) % 30 for row in range(len(prompts))])
            found.append(decoding.logits_RV)
    return torch.stack(found)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "one"])
def test_logits_are_those_of_growing_steps(kind: str, prompts: list[list[int]], monkeypatch: Any) -> None:
    model = tiny.build(tiny.llama(vocab_size=40, decoder_layers=2, **MODELS[kind]))
    assert can_be_static(model.config, 64)
    taken: list[Any] = []
    run = static_step._Step.__call__
    monkeypatch.setattr(static_step._Step, "__call__", lambda *given: taken.append(given) or run(*given))
    found = logits(model, prompts, static_steps=True)
    assert taken
    torch.testing.assert_close(found, logits(model, prompts, static_steps=False), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", DYNAMIC)
def test_other_models_are_not_static(kind: str) -> None:
    assert not can_be_static(tiny.llama(**DYNAMIC[kind]), 64)


def test_a_row_that_joins_grows_or_leaves_ends_a_recorded_step() -> None:
    model = tiny.build(tiny.llama(vocab_size=40))
    found = []
    for static_steps in (True, False):
        with torch.inference_mode():
            decoding, other = (Decoding([model], [prompt], static_steps=static_steps) for prompt in PROMPTS)
            for step in range(70):  # beyond the buffers' first 64 tokens
                decoding.step([step % 30])
            for step in range(6):
                other.step([step])
            decoding.join(other)
            for step in range(6):
                decoding.step([step, step + 1])
            decoding.select([1])
            for step in range(6):
                decoding.step([step])
            decoding.trim(7)
            decoding.step([3])
        found.append(decoding.logits_RV)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
