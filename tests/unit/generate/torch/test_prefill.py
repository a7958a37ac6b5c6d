"""A prompt that is read in pieces gives what it gives when it is read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.search.state import Decoding
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.generate.torch.ensemble import Ensemble
from onmt_llm.generate.torch.prefill import PIECE, PromptReader
from onmt_llm.generate.torch.prefix import PrefixCache
from onmt_llm.nn.transformer import Transformer

ROPE = {"original_max_position": 22, "factor": 4.0}
LONGROPE = {**ROPE, "scaling": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
KINDS: dict[str, dict[str, Any]] = {
    "rotary": tiny.LLAMA,
    "learned": {"position": "learned", "max_position": 64},
    "sinusoidal": {"position": "sinusoidal"},
    "alibi": {"position": "alibi"},
    "scaled alibi": {"position": "alibi", "alibi_scaled": True},
    "shaw": {"position": "shaw", "relative_positions": 4},
    "t5": {"position": "t5", "relative_buckets": 8, "relative_max_distance": 16},
    "window": {**tiny.LLAMA, "sliding_window": 5},
    "windows": {**tiny.LLAMA, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "sinks": {**tiny.LLAMA, "attention_sinks": True, "sliding_window": 5},
    "soft cap": {**tiny.LLAMA, "attention_softcap": 5.0},
    "latent": {
        **{"norm": "rmsnorm", "position": "rotary", "head_dim": 8, "rope": {"rotary_dim": 4}},
        "latent": {"kv_rank": 10, "q_rank": 14, "value_dim": 6},
    },
    "experts": {**tiny.LLAMA, "moe": {"experts": 4, "experts_per_token": 2}},
    "yarn": {**tiny.LLAMA, "rope": {**ROPE, "scaling": "yarn"}},
    "dynamic": {**tiny.LLAMA, "rope": {**ROPE, "scaling": "dynamic"}},
    "longrope": {**tiny.LLAMA, "rope": LONGROPE},
}


def ensemble(*models: Transformer) -> Ensemble:
    return Ensemble(models, None, average_probabilities=False)  # type: ignore[arg-type]


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    model = tiny.build(config, seed).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)
    return model


def prompt_of(length: int) -> list[int]:
    return [int(i) for i in tiny.token_ids(length, high=24)]


def following(decoding: Decoding) -> torch.Tensor:
    """Logits after the prompt and after each of some further tokens, which go beyond the context of `ROPE`."""
    found = [decoding.logits_RV]
    for token in (3, 9, 1, 7, 7, 4):
        decoding.step([token])
        found.append(decoding.logits_RV)
    return torch.cat(found)


@pytest.mark.parametrize("length", [9, 21, 30])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_pieces_give_the_logits_of_the_whole_prompt(kind: str, length: int) -> None:
    models, prompt = [build(tiny.config(**KINDS[kind]))], prompt_of(length)
    reader = PromptReader(ensemble(*models), prompt, piece=3)
    lengths = []
    while not reader.is_done:
        reader.step()
        lengths.append(reader.length)
    at_once = kind in ("dynamic", "longrope") and length == 30
    assert lengths == [length] if at_once else [*range(3, length, 3), length]
    torch.testing.assert_close(following(reader.decoding), following(Decoding(models, [prompt])), rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_prompt_goes_on_from_a_cache_of_its_beginning(kind: str) -> None:
    models, prompt = [build(tiny.config(**KINDS[kind]))], prompt_of(21)
    prefixes = PrefixCache(2**20)
    prefixes.store(prompt[:17], Decoding(models, [prompt[:17]]).caches)
    reader = PromptReader(ensemble(*models), prompt, prefixes=prefixes, piece=3)
    assert reader.length == 17
    while not reader.is_done:
        reader.step()
    torch.testing.assert_close(following(reader.decoding), following(Decoding(models, [prompt])), rtol=0, atol=2e-5)


@torch.inference_mode()
def test_an_ensemble_is_read_in_pieces() -> None:
    models = [build(tiny.llama(), seed) for seed in (0, 1)]
    prompt = prompt_of(11)
    reader = PromptReader(ensemble(*models), prompt, piece=4)
    while not reader.is_done:
        reader.step()
    torch.testing.assert_close(following(reader.decoding), following(Decoding(models, [prompt])), rtol=0, atol=2e-5)


def engine_that_counts(tmp_path: Path, config: ModelConfig) -> tuple[TorchEngine, list[int]]:
    """An engine, and the lengths of the runs of tokens that its decoder reads."""
    engine = TorchEngine.open(tiny.write_checkpoint(tmp_path / "model", config), device="cpu")
    read: list[int] = []
    decoder = engine.model.decoder
    assert decoder is not None
    decoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    return engine, read


def test_a_stream_can_be_stopped_between_two_pieces(tmp_path: Path) -> None:
    engine, read = engine_that_counts(tmp_path, tiny.llama())
    prompt = engine.codec.vocab.tokens(prompt_of(2 * PIECE + 5))
    options = GenerationConfig(max_length=3, min_length=3)
    whole = engine.generate([prompt], options)[0][0].text
    read.clear()
    assert "".join(delta.text for delta in engine.stream(prompt, options)) == whole
    assert read == [PIECE, PIECE, 5, 1, 1]
    read.clear()
    (delta,) = engine.stream(prompt, options, should_stop=lambda: len(read) == 2)
    assert (delta.text, delta.tokens, delta.finish_reason) == ("", 0, "stopped")
    assert read == [PIECE, PIECE]


def test_a_source_is_encoded_at_once(tmp_path: Path) -> None:
    engine, _ = engine_that_counts(tmp_path, tiny.seq2seq())
    prompt = engine.codec.vocab.tokens(prompt_of(2 * PIECE))
    options = GenerationConfig(max_length=3, min_length=3)
    assert (
        "".join(delta.text for delta in engine.stream(prompt, options)) == engine.generate([prompt], options)[0][0].text
    )
