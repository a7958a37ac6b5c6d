"""Prompt lookup: what is guessed, how often, and that answers are those without guesses."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.search import sampling as search
from onmt_llm.generate.search.state import Decoding
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.generate.torch.lookup import DraftedDecoding, NgramIndex, RepeatNeeded, with_lookup
from onmt_llm.nn.transformer import Transformer

ROPE = {"original_max_position": 40, "factor": 4.0}
LONGROPE = {**ROPE, "scaling": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
KINDS: dict[str, dict[str, Any]] = {
    "rotary": tiny.LLAMA,
    "learned": {"position": "learned", "max_position": 45},
    "alibi": {"position": "alibi"},
    "shaw": {"position": "shaw", "relative_positions": 4},
    "t5": {"position": "t5", "relative_buckets": 8, "relative_max_distance": 16},
    "window": {**tiny.LLAMA, "sliding_window": 5},
    "sinks": {**tiny.LLAMA, "attention_sinks": True},
    "dynamic": {**tiny.LLAMA, "rope": {**ROPE, "scaling": "dynamic"}},
    "longrope": {**tiny.LLAMA, "rope": LONGROPE},
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "an end token": ({}, {"end_ids": (0, 2, 5, 9)}),
    "repetition penalty": ({}, {"repetition_penalty": 1.3}),
    "other penalties": ({}, {"presence_penalty": 0.4, "frequency_penalty": 0.1}),
    "n-grams": ({}, {"ngram": 3}),
    "minimum length": ({}, {"end_ids": tuple(range(12)), "min_length": 25}),
    "bans": ({}, {"banned_ids": (3, 4, 5), "absent_ids": (6,)}),
    "a prefix": ({}, {"prefixes": [[4, 5, 6, 4, 5, 6, 4, 5]]}),
    "samples": ({"random_sampling_topk": 3, "random_sampling_temp": 0.3}, {}),
}
PROMPT = [1, 5, 6, 7, 8, 5, 6, 7, 9, 5, 6, 4, 5, 6]


def build(config: ModelConfig, seed: int = 0, std: float = 0.3) -> Transformer:
    model = tiny.build(config, seed).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=std)
    return model


class Counted:
    """Counts a model's forward passes, and the tokens that were read in them."""

    def __init__(self, model: Transformer) -> None:
        self.runs: list[int] = []
        assert model.decoder is not None
        model.decoder.register_forward_pre_hook(lambda module, inputs: self.runs.append(inputs[0].shape[1]))


def answer(
    model: Transformer, *, lookup: bool, options: GenerationConfig, length: int = 40, **rules: Any
) -> search.DecodingRow:
    rule = search.Constraints(**{"end_ids": (2,), "max_lengths": [length], **rules})
    row = search.DecodingRow(0, random=Random(3))
    decoding: Any = Decoding([model], [PROMPT])
    if lookup:
        decoding = with_lookup(decoding, PROMPT, config=model.config, max_length=rule.limit(0))
    for _ in search.sample(decoding, [row], options=options, constraints=rule):
        pass
    return row


def assert_same(first: search.DecodingRow, second: search.DecodingRow) -> None:
    assert (first.tokens, first.finish) == (second.tokens, second.finish)
    assert first.log_prob == pytest.approx(second.log_prob, abs=1e-4)


@pytest.mark.usefixtures("many_guesses")
@torch.inference_mode()
@pytest.mark.parametrize("name", OPTIONS)
def test_answers_are_those_without_guesses_over_options(name: str) -> None:
    options, rules = OPTIONS[name]
    passes = 0
    for seed in range(4):
        model = build(tiny.llama(), seed)
        config = GenerationConfig(**options)
        plain = answer(model, lookup=False, options=config, **rules)
        counted = Counted(model)
        assert_same(answer(model, lookup=True, options=config, **rules), plain)
        passes += len(counted.runs) - len(plain.tokens)
    assert passes <= 0
    assert passes < 0 or name in ("an end token", "repetition penalty", "other penalties", "n-grams", "samples")


@pytest.mark.usefixtures("many_guesses")
@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_without_guesses_in_every_kind_of_model(kind: str) -> None:
    model = build(tiny.config(**KINDS[kind]))
    length = 31 if kind == "learned" else 40  # beyond the table of positions there is no answer at all
    plain = answer(model, lookup=False, options=GenerationConfig(), length=length, end_ids=())
    assert_same(answer(model, lookup=True, options=GenerationConfig(), length=length, end_ids=()), plain)


@torch.inference_mode()
def test_a_loop_needs_few_passes() -> None:
    """A model that repeats itself: its output depends on its last token only."""
    model = build(tiny.llama())
    for name, parameter in model.named_parameters():
        if "o_proj" in name:
            parameter.zero_()
    plain = answer(model, lookup=False, options=GenerationConfig(), length=200, end_ids=())
    counted = Counted(model)
    assert_same(answer(model, lookup=True, options=GenerationConfig(), length=200, end_ids=()), plain)
    assert len(counted.runs) < 40
    assert sum(counted.runs) < 260


@pytest.mark.usefixtures("many_guesses")
@torch.inference_mode()
def test_guesses_that_fail_become_rare() -> None:
    """Tokens that are drawn from all, so that bigrams recur by chance and hardly any guess is right."""
    model = build(tiny.llama(), std=0.02)
    options = GenerationConfig(random_sampling_topk=0)
    plain = answer(model, lookup=False, options=options, length=250, end_ids=())
    counted = Counted(model)
    assert_same(answer(model, lookup=True, options=options, length=250, end_ids=()), plain)
    guesses = [length - 1 for length in counted.runs[1:] if length > 1]
    assert 0 < len(guesses) < 10
    assert sum(guesses) < 60


def test_a_guess_follows_the_last_occurrence_of_the_newest_tokens() -> None:
    history = NgramIndex([0, 1, 2, 3, 4, 9, 1, 2, 3, 5, 0, 1, 2, 3])
    assert history.guess(4, 3) == [4, 9, 1], "after 0 1 2 3, not after the newer 1 2 3"
    assert history.guess(5, 3) == [] and history.guess(4, 0) == []
    history.append(4)
    assert history.guess(5, 2) == [9, 1]
    history.append(7)
    assert history.guess(4, 4) == []
    assert len(history) == 16
    assert NgramIndex([1]).guess(4, 2) == []


def test_a_longer_copy_makes_a_longer_guess() -> None:
    text = list(range(100, 150))
    assert [len(NgramIndex([*text, *text[:n]]).guess(4, 99)) for n in (3, 4, 7, 8, 20)] == [0, 4, 4, 16, 16]


def test_a_guess_in_a_loop_repeats_its_period() -> None:
    assert NgramIndex([7, 1, 2, 1, 2, 1, 2]).guess(4, 3) == [1, 2, 1]
    assert NgramIndex([4, 4, 4, 4, 4]).guess(4, 3) == [4, 4, 4]


def test_guesses_that_do_not_pay_need_longer_repeats() -> None:
    need, seen = RepeatNeeded(), []
    for guessed, accepted in ((4, 4), (16, 2), (16, 0), (0, 0), (16, 1), (16, 3), (4, 2), (2, 2)):
        need.record(guessed, accepted)
        seen.append(need.tokens)
    assert seen == [4, 8, 16, 16, 24, 4, 8, 4]


def test_models_in_which_guesses_do_not_pay() -> None:
    experts = tiny.llama(moe={"experts": 4, "experts_per_token": 2})
    for config, max_length in (
        (experts, 40),
        (tiny.llama(), 1),
        (
            tiny.config(
                **KINDS["learned"],
            ),
            1,
        ),
    ):
        with torch.inference_mode():
            decoding = Decoding([build(config)], [PROMPT])
        assert with_lookup(decoding, PROMPT, config=config, max_length=max_length) is decoding
    with torch.inference_mode():
        decoding = Decoding([build(tiny.llama())], [PROMPT])
    assert isinstance(with_lookup(decoding, PROMPT, config=tiny.llama(), max_length=40), DraftedDecoding)


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize("opened", [{}, {"compute_type": "int8"}, {"prefix_cache": 1}], ids=["fp32", "int8", "prefix"])
def test_the_engine_answers_one_prompt_with_guesses(tmp_path: Path, opened: dict[str, Any]) -> None:
    path = tiny.write_checkpoint(tmp_path / "model", tiny.llama())
    plain = TorchEngine.open(path, device="cpu", **{k: v for k, v in opened.items() if k != "prefix_cache"})
    engine = TorchEngine.open(path, device="cpu", prompt_lookup=True, **opened)
    counted = Counted(engine.model)
    tokens = [int(i) for i in tiny.token_ids(20, high=24)]
    prompt = engine.codec.vocab.tokens([*tokens, *tokens])
    for options in (GenerationConfig(max_length=60, min_length=60), GenerationConfig(max_length=60, stop=["w5 w"])):
        expected = plain.generate([prompt], options)[0][0]
        counted.runs.clear()
        found = engine.generate([prompt], options)[0][0]
        assert (found.tokens, found.text, found.finish_reason) == (
            expected.tokens,
            expected.text,
            expected.finish_reason,
        )
        assert found.score == pytest.approx(expected.score, abs=1e-4)
        assert max(counted.runs[1:]) > 1
        for _ in range(2):
            assert "".join(delta.text for delta in engine.stream(prompt, options)) == expected.text
    several = GenerationConfig(max_length=20, n_best=2, random_sampling_topk=0, seed=1)
    assert engine.generate([prompt, prompt[:9]], several) == plain.generate([prompt, prompt[:9]], several)
