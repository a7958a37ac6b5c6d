"""A CTranslate2 float32 release of every architecture that we release, against our own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.generate.engine import Engine
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release

VOCAB = tiny.tokens(40)
LLAMA = {**tiny.BASE, **tiny.LLAMA, "vocab_size": 40, "kv_heads": None, "norm_eps": 1e-5}
FALCON = {
    **LLAMA,
    "ffn_gated": False,
    "activation": "gelu",
    "norm": "layernorm",
    "parallel_residual": True,
    "tie_embeddings": True,
}
LLAMA3_ROPE = {"theta": 5e5, "scaling": "llama3", "factor": 8.0, "original_max_position": 16, "high_freq_factor": 3.0}
BIASES = {"attn_bias": True, "attn_out_bias": True, "ffn_bias": True}
ARCHITECTURES = {
    "llama": LLAMA,
    "llama grouped, llama3 rope, tied": {**LLAMA, "kv_heads": 2, "tie_embeddings": True, "rope": LLAMA3_ROPE},
    "llama theta, linear rope": {**LLAMA, "rope": {"theta": 1e6, "scaling": "linear", "factor": 4.0}},
    "llama odd head_dim, qk_norm": {**LLAMA, "head_dim": 6, "qk_norm": True, "kv_heads": 2, "lm_head_bias": True},
    "mistral within its window": {**LLAMA, "kv_heads": 2, "sliding_window": 64},
    "falcon 7b": {**FALCON, "shared_norm": True, "kv_heads": 1},
    "falcon 40b": {**FALCON, "kv_heads": 2},
    "gpt-neox": {**FALCON, **BIASES, "tie_embeddings": False, "rope": {"rotary_dim": 4}},
    "phi": {
        **FALCON,
        **BIASES,
        "shared_norm": True,
        "activation": "gelu_tanh",
        "lm_head_bias": True,
        "rope": {"rotary_dim": 2},
    },
    "parallel rmsnorm": {**LLAMA, "parallel_residual": True},
    "mpt": {**FALCON, "parallel_residual": False, "position": "alibi", "norm_bias": False},
    "alibi, grouped, 6 heads": {
        **FALCON,
        "parallel_residual": False,
        "position": "alibi",
        "hidden_size": 36,
        "heads": 6,
        "kv_heads": 2,
    },
    "shaw": {**LLAMA, "position": "shaw", "relative_positions": 5, "kv_heads": 2},
    "scaled logits, unscaled attention": {**LLAMA, "scale_attention": False, "scale_logits": True},
    "gpt2": {
        **FALCON,
        **BIASES,
        "parallel_residual": False,
        "position": "learned",
        "max_position": 64,
        "activation": "gelu_tanh",
    },
    "opennmt lm": {
        **LLAMA,
        **BIASES,
        "norm": "layernorm",
        "position": "sinusoidal",
        "scale_embeddings": True,
        "activation": "relu",
    },
    "post-norm": {**FALCON, **BIASES, "parallel_residual": False, "position": "sinusoidal", "norm_position": "post"},
}


@pytest.fixture(scope="module", params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    directory = tmp_path_factory.mktemp("parity")
    config = {**request.param, "rope": RopeConfig(**request.param.get("rope", {}))}
    checkpoint = tiny.write_checkpoint(directory / "model", ModelConfig(**config))
    release(checkpoint, directory / "ct2", text=" ".join(VOCAB[3:]))
    return open_engine(checkpoint, device="cpu"), open_engine(directory / "ct2", device="cpu")


def sequence(seed: int, length: int) -> list[str]:
    return ["<s>", *(VOCAB[i] for i in np.random.default_rng(seed).integers(3, 40, length - 1))]


def test_logits(engines: tuple[Engine, Engine]) -> None:
    ours, theirs = engines
    for seed, length in enumerate((1, 7, 60)):
        tokens = sequence(seed, length)
        np.testing.assert_allclose(theirs.logits(tokens), ours.logits(tokens), atol=1e-4)


def test_greedy_answers_and_scores(engines: tuple[Engine, Engine]) -> None:
    ours, theirs = engines
    prompts = [sequence(seed, length) for seed, length in enumerate((3, 12, 1, 5, 5))]
    options = GenerationConfig(max_length=12)
    for answer, expected in zip(theirs.generate(prompts, options), ours.generate(prompts, options), strict=True):
        assert answer[0].tokens == expected[0].tokens
        assert answer[0].finish_reason == expected[0].finish_reason
        assert answer[0].score == pytest.approx(expected[0].score, abs=1e-4)
    for log_probs, expected in zip(theirs.score(prompts), ours.score(prompts), strict=True):
        assert log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kinds", [[], ["full_attention", "sliding_attention"]])
def test_beyond_the_window(tmp_path: Path, kinds: list[Any]) -> None:
    config = ModelConfig(**{**LLAMA, "kv_heads": 2, "sliding_window": 6, "layer_types": kinds})
    checkpoint = tiny.write_checkpoint(tmp_path / "model", config)
    release(checkpoint, tmp_path / "ct2", text=" ".join(VOCAB[3:]))
    ours, theirs = open_engine(checkpoint, device="cpu"), open_engine(tmp_path / "ct2", device="cpu")
    texts = [sequence(seed, length) for seed, length in enumerate((1, 5, 6, 7, 40))]
    texts.append([*texts[-1][:9], "</s>", *texts[-1][9:]])
    for tokens in texts:
        np.testing.assert_allclose(theirs.logits(tokens), ours.logits(tokens), atol=1e-4)
    for log_probs, expected in zip(theirs.score(texts), ours.score(texts), strict=True):
        assert log_probs == pytest.approx(expected, abs=1e-4)
    for options in (GenerationConfig(max_length=30, min_length=30), GenerationConfig(max_length=9, beam_size=3)):
        expected = [answers[0].tokens for answers in ours.generate(texts, options)]
        for size in (1, len(texts)):
            assert [answers[0].tokens for answers in theirs.generate(texts, options, batch_size=size)] == expected
    options = GenerationConfig(max_length=30)
    assert [list(theirs.stream(tokens, options)) for tokens in texts] == [
        list(ours.stream(tokens, options)) for tokens in texts
    ]
    for penalty in ({"repetition_penalty": 1.5}, {"block_ngram_repeat": 2}):
        with pytest.raises(UnsupportedError, match="more than sliding_window = 6 tokens"):
            theirs.generate(texts, GenerationConfig(**penalty))
