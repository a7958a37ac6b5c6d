"""The prefix cache: what it keeps, what it forgets, and that answers do not depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.session import ChatSession
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.generate.torch.ensemble import Ensemble
from onmt_llm.generate.torch.prefill import PIECE, PromptReader
from onmt_llm.generate.torch.prefix import PrefixCache, common_length
from onmt_llm.nn.kv_cache import KVCache

LONG = GenerationConfig(max_length=20, min_length=20)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rotary": (tiny.LLAMA, {}),
    "int8": (tiny.LLAMA, {"compute_type": "int8"}),
    "learned": ({"position": "learned", "max_position": 200}, {}),
    "alibi": ({"position": "alibi"}, {}),
    "window": ({**tiny.LLAMA, "sliding_window": 5}, {}),
    "longrope": (
        {
            **tiny.LLAMA,
            "rope": {
                **{"scaling": "longrope", "original_max_position": 70, "factor": 4.0},
                **{"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]},
            },
        },
        {},
    ),
}


def keys(ids: list[int]) -> KVCache:
    """A cache of one layer, in which a token's keys and values are its id: 64 bytes a token."""
    cache = KVCache(1)
    k = torch.tensor(ids, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 4)
    cache.append(0, k, k)
    return cache


def held(cache: KVCache) -> list[int]:
    k, _ = cache.copy(cache.length).append(0, torch.zeros(1, 2, 0, 4), torch.zeros(1, 2, 0, 4))
    return [int(i) for i in k[0, 0, :, 0]]


def sequence(*runs: tuple[int, int]) -> list[int]:
    return [id_ for id_, times in runs for _ in range(times)]


def found(prefixes: PrefixCache, ids: list[int]) -> list[int]:
    return [id_ for cache in prefixes.find(ids) for id_ in held(cache)]


def test_the_longest_common_beginning_is_found() -> None:
    prefixes = PrefixCache(2**20)
    first, second = sequence((1, 20), (2, 20)), sequence((1, 20), (3, 30))
    for ids in (first, second):
        prefixes.store(ids, [keys(ids)])
    assert found(prefixes, sequence((1, 20), (3, 5), (4, 9))) == sequence((1, 20), (3, 5))
    assert found(prefixes, [*first, 9]) == first
    assert found(prefixes, first) == first[:-1], "the last token of a prompt must be read"
    assert found(prefixes, sequence((1, 15), (2, 10))) == [], "15 tokens in common are not worth it"
    assert found(prefixes, [5]) == []


def test_a_copy_is_not_shared() -> None:
    prefixes, ids = PrefixCache(2**20), sequence((1, 40))
    prefixes.store(ids, [keys(ids)])
    for _ in range(2):
        (cache,) = prefixes.find([*ids, 2], capacity=100)
        k, v = cache.append(0, torch.full((1, 2, 3, 4), 7.0), torch.full((1, 2, 3, 4), 7.0))
        k.zero_()
        v.zero_()
    assert found(prefixes, [*ids, 2]) == ids


def test_a_longer_sequence_replaces_its_beginning() -> None:
    prefixes = PrefixCache(2**20)
    ids = sequence((1, 64), (2, 64))
    for length in (64, 128, 100):
        prefixes.store(ids[:length], [keys(ids[:length])])
        assert prefixes.nbytes == 64 * max(length, 128 if length == 100 else 0)
    assert found(prefixes, [*ids, 3]) == ids


def test_the_sequence_that_was_not_used_for_the_longest_time_leaves_first() -> None:
    prefixes = PrefixCache(3 * 64 * 64)
    sequences = [sequence((number, 64)) for number in range(4)]
    for ids in sequences[:3]:
        prefixes.store(ids, [keys(ids)])
    assert found(prefixes, sequences[0])
    prefixes.store(sequences[3], [keys(sequences[3])])
    assert [bool(found(prefixes, ids)) for ids in sequences] == [True, False, True, True]
    assert prefixes.nbytes == 3 * 64 * 64


def test_of_a_sequence_beyond_the_limit_the_beginning_is_kept() -> None:
    prefixes, ids = PrefixCache(130 * 64), list(range(300))
    prefixes.store(ids, [keys(ids)])
    assert prefixes.nbytes == 128 * 64
    assert found(prefixes, ids) == ids[:128]
    none = PrefixCache(64)
    none.store(ids, [keys(ids)])
    assert none.nbytes == 0 and found(none, ids) == []


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == common_length([1, 2, 4], [1, 2]) == 2
    assert common_length([], [1]) == common_length([2], [1]) == 0


def engines(tmp_path: Path, config: dict[str, Any], opened: dict[str, Any]) -> tuple[TorchEngine, TorchEngine]:
    """One with a prefix cache, one without."""
    path = tiny.write_checkpoint(tmp_path / "model", tiny.config(**config))
    return (
        TorchEngine.open(path, device="cpu", prefix_cache=1, **opened),
        TorchEngine.open(path, device="cpu", **opened),
    )


def tokens_read(engine: TorchEngine) -> list[int]:
    read: list[int] = []
    decoder = engine.model.decoder
    assert decoder is not None
    decoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    return read


def text(engine: TorchEngine, prompt: list[str], options: GenerationConfig = LONG) -> str:
    return "".join(delta.text for delta in engine.stream(prompt, options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_turns_of_a_chat_read_what_is_new_and_get_the_same_answers(tmp_path: Path, variant: str) -> None:
    engine, plain = engines(tmp_path, *VARIANTS[variant])
    read = tokens_read(engine)
    prompt = engine.codec.vocab.tokens([int(i) for i in tiny.token_ids(40, high=24)])
    for number in range(3):
        read.clear()
        (answer,) = plain.generate([prompt], LONG)[0]
        assert text(engine, prompt) == answer.text
        # The last token of the former answer, which was not read, and the new message; or all that longrope renews.
        renewed = variant == "longrope" and len(prompt) > 70
        assert read[0] == (len(prompt) if renewed or not number else 3)
        prompt = [*prompt, *answer.tokens, "w5", f"w{number}"]


@torch.inference_mode()
def test_in_bf16_a_prefix_costs_no_precision() -> None:
    """Runs of other lengths are rounded in another way, but not worse."""
    config, ids = tiny.llama(), [int(i) for i in tiny.token_ids(40, high=24)]
    exact, model = tiny.build(config).eval(), tiny.build(config).eval().bfloat16()
    ensemble = Ensemble([model], None, average_probabilities=False)  # type: ignore[arg-type]
    prefixes = PrefixCache(2**20)
    for prompt in (ids[:30], ids):
        reader = PromptReader(ensemble, prompt, prefixes=prefixes)
        reader.step()
        logits_V = reader.decoding.logits_RV[0].clone()
        reader.keep()
    expected_V = exact(torch.tensor([ids]))[0, -1]
    plain_V = model(torch.tensor([ids]))[0, -1].float()
    assert (logits_V - expected_V).abs().max() < 2 * (plain_V - expected_V).abs().max()


def test_other_conversations_and_stopped_answers_are_read_from_where_they_differ(tmp_path: Path) -> None:
    engine, plain = engines(tmp_path, tiny.LLAMA, {})
    read = tokens_read(engine)
    system = engine.codec.vocab.tokens([int(i) for i in tiny.token_ids(30, high=24)])
    text(engine, [*system, "w1", "w2"])
    read.clear()
    assert text(engine, [*system, "w7", "w3"]) == text(plain, [*system, "w7", "w3"])
    assert read[0] == 2
    read.clear()
    assert text(engine, [*system, "w7", "w3"]) == text(plain, [*system, "w7", "w3"])
    assert read[0] == 1
    drawn = LONG.model_copy(update={"random_sampling_topk": 0, "seed": 3})
    assert text(engine, [*system, "w7", "w3"], drawn) == text(plain, [*system, "w7", "w3"], drawn)


def test_a_prompt_whose_reading_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    engine, plain = engines(tmp_path, tiny.LLAMA, {})
    read = tokens_read(engine)
    prompt = engine.codec.vocab.tokens([int(i) for i in tiny.token_ids(2 * PIECE + 9, high=24)])
    list(engine.stream(prompt, LONG, should_stop=lambda: len(read) == 1))
    read.clear()
    assert text(engine, prompt) == text(plain, prompt)
    assert read[:2] == [PIECE, 9]


def test_an_encoder_decoder_has_none(tmp_path: Path) -> None:
    path = tiny.write_checkpoint(tmp_path / "model", tiny.seq2seq())
    engine = TorchEngine.open(path, device="cpu", prefix_cache=1)
    prompt = engine.codec.vocab.tokens([int(i) for i in tiny.token_ids(40, high=24)])
    assert text(engine, prompt) == text(engine, prompt) == engine.generate([prompt], LONG)[0][0].text


def test_a_chat_session_reads_each_message_once(tmp_path: Path) -> None:
    path = tiny.write_chat_model(tmp_path / "model")
    engine = TorchEngine.open(path, device="cpu", prefix_cache=1)
    read = tokens_read(engine)
    session = ChatSession(engine, GenerationConfig(max_length=5), max_context_length=1000)
    for message in ("How are you this morning?", "And yesterday?"):
        read.clear()
        session.ask(message)
    assert sum(read) < 60 < len(engine.codec.encode_chat(session.messages))
