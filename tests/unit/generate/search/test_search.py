"""Greedy search, sampling and beam search against the full forward pass and brute force."""

from __future__ import annotations

import itertools
from random import Random

import pytest
import torch

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.lengths import length_penalty
from onmt_llm.generate.search import sampling as search
from onmt_llm.generate.search.beam import beam_search
from onmt_llm.generate.search.sampling import top_k
from onmt_llm.generate.search.state import Decoding
from onmt_llm.nn.transformer import Transformer

END = 2
PROMPTS = [[1, 5, 6, 7, 8, 9], [1, 4], [1, 9, 9, 3]]
LLAMA = tiny.llama()
SEQ2SEQ = tiny.seq2seq()


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose random weights are large enough to make it opinionated."""
    model = tiny.build(config, seed).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)
    return model


def greedy(
    model: Transformer, prompts: list[list[int]], max_length: int = 12, **constraints: object
) -> list[list[int]]:
    rows = [search.DecodingRow(prompt) for prompt in range(len(prompts))]
    decoding = Decoding([model], prompts, start_ids=[1])
    rule = search.Constraints((END,), [max_length] * len(prompts), **constraints)  # type: ignore[arg-type]
    for _ in search.sample(decoding, rows, options=GenerationConfig(), constraints=rule):
        pass
    return [row.tokens for row in rows]


@pytest.mark.parametrize(
    "config", [LLAMA, SEQ2SEQ, LLAMA.model_copy(update={"position": "alibi"})], ids=["rope", "seq2seq", "alibi"]
)
def test_cached_greedy_equals_the_full_forward_and_ignores_neighbours(config: ModelConfig) -> None:
    model = build(config)
    together = greedy(model, PROMPTS)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert greedy(model, [prompt])[0] == answer
        given = [1] if config.encoder_layers else prompt
        for token in answer:
            ids = ([torch.tensor([prompt])] if config.encoder_layers else []) + [torch.tensor([given])]
            assert int(model(*ids)[0, -1].argmax()) == token
            given = [*given, token]


def test_samples_do_not_depend_on_neighbours() -> None:
    model = build(LLAMA)

    def sample(places: list[int]) -> dict[int, list[int]]:
        rows = [search.DecodingRow(i, random=Random(f"7/{place}")) for i, place in enumerate(places)]
        decoding = Decoding([model], [PROMPTS[place] for place in places])
        options = GenerationConfig(random_sampling_temp=1.5, random_sampling_topk=10, random_sampling_topp=0.9)
        rule = search.Constraints((END,), [10] * len(places))
        for _ in search.sample(decoding, rows, options=options, constraints=rule):
            pass
        return {place: row.tokens for place, row in zip(places, rows, strict=True)}

    alone = {place: sample([place])[place] for place in range(3)}
    assert sample([0, 1, 2]) == alone
    assert sample([2, 1]) == {place: alone[place] for place in (1, 2)}


def test_rules_hold() -> None:
    model = build(LLAMA)
    free = greedy(model, PROMPTS)
    assert all(len(tokens) >= 9 for tokens in greedy(model, PROMPTS, min_length=8))
    banned = tuple({tokens[0] for tokens in free})
    assert not any(set(banned) & set(tokens) for tokens in greedy(model, PROMPTS, banned_ids=banned))
    for tokens in greedy(model, PROMPTS, ngram=2):
        pairs = list(itertools.pairwise(tokens))
        assert len(pairs) == len(set(pairs))


def test_a_row_that_the_caller_ends_leaves_the_others_alone() -> None:
    model = build(LLAMA)
    rows = [search.DecodingRow(prompt) for prompt in range(3)]
    decoding = Decoding([model], PROMPTS)
    rule = search.Constraints((), [6] * 3)
    for row in search.sample(decoding, rows, options=GenerationConfig(), constraints=rule):
        if row.prompt == 1 and len(row.tokens) == 2:
            row.finish = "stop"
    assert [len(row.tokens) for row in rows] == [6, 2, 6]
    assert rows[0].tokens == greedy(model, PROMPTS[:1], max_length=6)[0][:6]


JOINED = {
    "rope": LLAMA,
    "seq2seq": SEQ2SEQ,
    "alibi": tiny.llama(position="alibi"),
    "t5": tiny.config(position="t5"),
    "shaw": tiny.config(position="shaw", relative_positions=4),
    "learned": tiny.config(position="learned", max_position=40),
    "window": tiny.llama(sliding_window=4),
    "dynamic": tiny.llama(rope={"scaling": "dynamic", "factor": 4.0, "original_max_position": 8}),
    "longrope": tiny.llama(
        rope={
            "scaling": "longrope",
            "original_max_position": 9,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0, 2.0, 1.5, 1.0],
        }
    ),
}


@pytest.mark.parametrize("config", JOINED.values(), ids=JOINED)
def test_rows_that_join_and_leave_at_any_step_are_as_alone(config: ModelConfig) -> None:
    model, limits = build(config), [5, 14, 9]
    rule = search.Constraints((), limits)

    def alone(number: int) -> list[int]:
        row = search.DecodingRow(0)
        for _ in search.sample(
            Decoding([model], [PROMPTS[number]], start_ids=[1]),
            [row],
            options=GenerationConfig(),
            constraints=search.Constraints((), [limits[number]]),
        ):
            pass
        return row.tokens

    waiting = [Decoding([model], [prompt], start_ids=[1]) for prompt in PROMPTS]
    every = [search.DecodingRow(number) for number in range(3)]
    batch, rows = waiting[0], every[:1]
    for step in range(20):
        if step in (2, 3):
            batch.join(waiting[step - 1])
            rows.append(every[step - 1])
        search.extend(rows, batch.logits_RV, pick=search.pick_best, constraints=rule)
        kept = [i for i, row in enumerate(rows) if row.finish is None]
        rows = [rows[i] for i in kept]
        if not rows:
            break
        batch.select(kept)
        batch.drop_padding()
        batch.step([row.tokens[-1] for row in rows])
    assert [row.tokens for row in every] == [alone(number) for number in range(3)]


def find(
    model: Transformer, prompts: list[list[int]], *, beam: int, length: int, penalty: str = "avg", **constraints: object
):
    return beam_search(
        Decoding([model], prompts, start_ids=[1]),
        options=GenerationConfig(beam_size=beam, n_best=beam, length_penalty=penalty, alpha=0.6),
        constraints=search.Constraints((END,), [length] * len(prompts), **constraints),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("penalty", ["none", "avg", "wu"])
def test_a_wide_beam_finds_the_best_of_all_answers(penalty: str) -> None:
    config = LLAMA.model_copy(update={"vocab_size": 5})
    model, prompt, length = build(config, seed=3), [1, 4], 3
    divide = length_penalty(GenerationConfig(length_penalty=penalty, alpha=0.6))
    scored = []
    for size in range(1, length + 1):
        for tokens in itertools.product(range(5), repeat=size):
            if END in tokens[:-1] or (size < length and tokens[-1] != END):
                continue
            log_probs = model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
            total = sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))
            scored.append((total / divide(size), list(tokens)))
    scored.sort(reverse=True)
    found = find(model, [prompt], beam=200, length=length, penalty=penalty)[0]
    for (score, row), (expected, tokens) in zip(found[:5], scored[:5], strict=True):
        assert row.tokens == tokens
        assert score == pytest.approx(expected, abs=1e-5)


def test_beams_do_not_depend_on_neighbours() -> None:
    model = build(LLAMA, seed=1)
    together = find(model, PROMPTS, beam=3, length=8)
    for prompt, found in zip(PROMPTS, together, strict=True):
        assert [row.tokens for _, row in find(model, [prompt], beam=3, length=8)[0]] == [row.tokens for _, row in found]


def test_beam_search_of_an_encoder_decoder_beats_greedy() -> None:
    model = build(SEQ2SEQ, seed=2)
    for prompt, found in zip(PROMPTS, find(model, PROMPTS, beam=8, length=6, penalty="none"), strict=True):
        alone = greedy(model, [prompt], max_length=6)[0]
        log_probs = model(torch.tensor([prompt]), torch.tensor([[1, *alone]]))[0].log_softmax(-1)
        total = sum(float(log_probs[i, token]) for i, token in enumerate(alone))
        assert found[0][0] >= total - 1e-5


def test_answers_begin_with_their_prefix_whose_tokens_do_not_count_as_length() -> None:
    model, prefixes = build(SEQ2SEQ, seed=2), [[7, 9], [], [5]]
    found = find(model, PROMPTS, beam=3, length=4, prefixes=prefixes, min_length=2)
    for prefix, prompt, answers in zip(prefixes, PROMPTS, found, strict=True):
        for score, row in answers:
            assert row.tokens[: len(prefix)] == prefix and len(prefix) + 2 < len(row.tokens) <= len(prefix) + 4
            log_probs = model(torch.tensor([prompt]), torch.tensor([[1, *row.tokens]]))[0].log_softmax(-1)
            total = sum(float(log_probs[i, token]) for i, token in enumerate(row.tokens))
            assert score == pytest.approx(total / (len(row.tokens) + 1) ** 0.6, abs=1e-5)
    for prefix, tokens in zip(prefixes, greedy(model, PROMPTS, prefixes=prefixes), strict=True):
        assert tokens[: len(prefix)] == prefix


def test_an_exempt_token_may_repeat() -> None:
    model = build(LLAMA)
    free = greedy(model, PROMPTS)
    everything = frozenset(range(24))
    assert greedy(model, PROMPTS, ngram=2, ngram_exempt=everything) == free


@pytest.mark.parametrize(("vocab", "k"), [(50, 5), (1000, 5), (1003, 5), (4096, 1), (3, 5)])
def test_the_best_tokens_are_found_by_their_chunks(vocab: int, k: int) -> None:
    scores = torch.randn(7, vocab, generator=torch.Generator().manual_seed(1))
    scores[0, 10:] = float("-inf")
    values, ids = top_k(scores, k)
    assert torch.equal(values, scores.topk(min(k, vocab)).values)
    assert torch.equal(scores.gather(1, ids), values)
