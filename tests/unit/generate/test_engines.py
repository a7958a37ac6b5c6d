"""Both engines give one meaning to each generation option."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from onmt_llm import log
from onmt_llm.checkpoint.directory import write_manifest
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from onmt_llm.generate.engine import Engine
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release

VOCAB = ["<unk>", "<s>", "</s>", "<end>", *(chr(ord("a") + i) for i in range(20))]
CONFIG = tiny.config(vocab_size=26, norm="rmsnorm", position="rotary", activation="gelu")
PROMPTS = [["<s>", "a", "b"], [], ["<s>"], ["<s>", *"qponmlk"], ["<s>", *"cde"], ["<s>", *"cde"]]
LONG = GenerationConfig(max_length=15, min_length=15)


def write_checkpoint(directory: Path, config: ModelConfig) -> Path:
    return tiny.write_checkpoint(directory, config, VOCAB, seed=5, scale=0.4, stop_tokens=["<end>"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose embedding has two rows more than there are tokens, and its release beside it."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("engines") / "model", CONFIG)
    release(checkpoint, checkpoint.with_name("ct2"), text=" ".join(VOCAB[4:]))
    return checkpoint


@pytest.fixture(scope="module", params=["model", "ct2"])
def engine(request: pytest.FixtureRequest, model: Path) -> Engine:
    return open_engine(model.with_name(request.param), device="cpu")


def texts(engine: Engine, prompts: list[list[str]], options: GenerationConfig, **batching: int) -> list[list[str]]:
    return [[answer.text for answer in answers] for answers in engine.generate(prompts, options, **batching)]  # type: ignore[arg-type]


def streamed(engine: Engine, prompt: list[str], options: GenerationConfig) -> tuple[str, int, str | None]:
    deltas = list(engine.stream(prompt, options))
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    return "".join(d.text for d in deltas), sum(d.tokens for d in deltas), deltas[-1].finish_reason


@pytest.mark.parametrize(
    "options",
    [
        GenerationConfig(max_length=10),
        GenerationConfig(max_length=10, repetition_penalty=1.5),
        GenerationConfig(max_length=10, block_ngram_repeat=2, min_length=5),
        GenerationConfig(max_length=8, beam_size=3, n_best=2),
        GenerationConfig(max_length=8, beam_size=3, length_penalty="none"),
    ],
    ids=["greedy", "penalty", "ngram", "beam", "beam none"],
)
def test_answers_keep_their_order_and_ignore_their_neighbours(engine: Engine, options: GenerationConfig) -> None:
    together = texts(engine, PROMPTS, options)
    assert together[1] == [""] * options.n_best
    assert texts(engine, PROMPTS, options, batch_size=2) == together
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert texts(engine, [prompt], options) == [answer]
    longer = [prompt for prompt in PROMPTS if len(prompt) > 1]
    kept = [answer for prompt, answer in zip(PROMPTS, together, strict=True) if len(prompt) > 1]
    assert texts(engine, longer, options) == kept


def test_the_stream_is_the_answer(engine: Engine) -> None:
    for options in (GenerationConfig(max_length=10), GenerationConfig(max_length=10, stop=["a"]), LONG):
        for prompt in PROMPTS:
            answer = engine.generate([prompt], options)[0][0]
            text, tokens, reason = streamed(engine, prompt, options)
            assert (text, reason) == (answer.text, answer.finish_reason)
            assert tokens >= len(answer.tokens)


def test_a_stop_string_ends_an_answer_in_the_middle_of_a_batch(engine: Engine) -> None:
    free = engine.generate(PROMPTS, LONG)
    words = free[3][0].text.split()
    stop = f"{words[4]} {words[5]}"
    for beam in (1, 3):
        stopped = engine.generate(PROMPTS, LONG.model_copy(update={"stop": [stop], "beam_size": beam}))
        assert all(stop not in answer.text for answers in stopped for answer in answers)
        if beam == 1:
            expected = free[3][0].text[: free[3][0].text.index(stop)]
            assert (stopped[3][0].text, stopped[3][0].finish_reason) == (expected, "stop")
            assert stopped[3][0].tokens == expected.split()
            assert all(len(answer.tokens) == 15 for (answer,) in stopped if answer.finish_reason == "length")


def test_the_stop_callback_does_not_hold_the_model(model: Path) -> None:
    """CTranslate2 drops it in a worker thread; a model that ends there waits for its own thread and aborts."""
    engine: Any = open_engine(model.with_name("ct2"), device="cpu")
    handle, kept = engine._model.handle, []

    def generate_batch(*prompts: Any, **options: Any) -> Any:
        kept.append(options["callback"])
        return handle.generate_batch(*prompts, **options)

    engine._model.handle = SimpleNamespace(generate_batch=generate_batch)
    engine.generate(PROMPTS, LONG.model_copy(update={"stop": ["a"]}))
    loaded = weakref.ref(engine._model)
    del engine
    gc.collect()
    assert kept[0] is not None
    assert loaded() is None


def test_lengths(engine: Engine) -> None:
    for (answer,) in [
        answers for answers, prompt in zip(engine.generate(PROMPTS, LONG), PROMPTS, strict=True) if prompt
    ]:
        assert len(answer.tokens) == 15 and answer.finish_reason == "length"
    assert all(len(answers[0].tokens) <= 3 for answers in engine.generate(PROMPTS, GenerationConfig(max_length=3)))


def test_stop_tokens_and_unknown_tokens(engine: Engine) -> None:
    assert not {"<end>", "</s>"} & {
        t for a in engine.generate(PROMPTS, GenerationConfig(max_length=30)) for t in a[0].tokens
    }
    sampling = GenerationConfig(
        max_length=60, min_length=60, random_sampling_topk=0, random_sampling_temp=3, n_best=8, ban_unk_token=True
    )
    for answers in engine.generate([["<s>", "a"], ["<s>", "b"]], sampling):
        assert len({answer.text for answer in answers}) == 8
        assert not any("<unk>" in answer.tokens or len(answer.tokens) != 60 for answer in answers)


def test_a_stop_token_of_the_options_ends_an_answer(engine: Engine) -> None:
    free = GenerationConfig(max_length=15)
    whole = engine.generate(PROMPTS[3:4], free)[0][0].tokens
    stop = whole[2]
    asked = free.model_copy(update={"stop_tokens": [stop]})
    answer = engine.generate(PROMPTS[3:4], asked)[0][0]
    assert answer.tokens == whole[: whole.index(stop)] and answer.finish_reason == "stop"
    assert streamed(engine, PROMPTS[3], asked)[0] == answer.text
    with pytest.raises(ConfigError, match="'stop_tokens' must be tokens of the vocabulary, but 'zz' is not"):
        engine.generate(PROMPTS[3:4], free.model_copy(update={"stop_tokens": ["zz"]}))


def test_a_part_of_the_input_draws_by_its_places(model: Path) -> None:
    engine = open_engine(model, device="cpu")
    drawn = LONG.model_copy(update={"random_sampling_topk": 0, "random_sampling_temp": 3.0, "seed": 3})
    prompts = [["<s>", *"cde"]] * 4
    whole = [answers[0].text for answers in engine.generate(prompts, drawn)]
    parts = [
        [answers[0].text for answers in engine.generate(prompts[i : i + 2], drawn, places=[i, i + 1])] for i in (0, 2)
    ]
    assert parts[0] != parts[1]
    assert [*parts[0], *parts[1]] == whole


DRAWN = LONG.model_copy(update={"random_sampling_topk": 0, "random_sampling_temp": 3.0, "seed": 3})


@pytest.mark.parametrize("kind", ["model", "ct2"])
def test_a_seed_repeats_and_no_seed_does_not(model: Path, kind: str) -> None:
    def fresh() -> Engine:
        return open_engine(model.with_name(kind), device="cpu")

    engine = fresh()
    first = texts(engine, PROMPTS, DRAWN)
    assert texts(fresh(), PROMPTS, DRAWN) == first
    assert streamed(fresh(), PROMPTS[0], DRAWN) == streamed(fresh(), PROMPTS[0], DRAWN)
    assert texts(fresh(), PROMPTS, DRAWN.model_copy(update={"seed": 4})) != first
    free = DRAWN.model_copy(update={"seed": -1})
    assert texts(engine, PROMPTS, free) != texts(engine, PROMPTS, free)


def test_ctranslate2_takes_one_seed_and_is_never_loaded_again(model: Path) -> None:
    engine: Any = open_engine(model.with_name("ct2"), device="cpu")
    handle = engine._model.handle
    first, second = texts(engine, PROMPTS, DRAWN), texts(engine, PROMPTS, DRAWN)
    assert first != second  # the numbers go on
    texts(engine, PROMPTS, LONG.model_copy(update={"seed": 9}))  # greedy search draws nothing
    with pytest.raises(UnsupportedError, match="one seed for all answers of a model"):
        texts(engine, PROMPTS, DRAWN.model_copy(update={"seed": 4}))
    with pytest.raises(UnsupportedError, match="one seed for all answers of a model"):
        streamed(engine, PROMPTS[0], DRAWN.model_copy(update={"seed": 4}))
    assert engine._model.handle is handle
    again = open_engine(model.with_name("ct2"), device="cpu")
    assert [texts(again, PROMPTS, DRAWN) for _ in range(2)] == [first, second]


def test_torch_samples_do_not_depend_on_the_batch(model: Path) -> None:
    engine = open_engine(model, device="cpu")
    drawn = LONG.model_copy(update={"random_sampling_topk": 8, "random_sampling_topp": 0.9, "seed": 3, "n_best": 2})
    assert texts(engine, PROMPTS, drawn, batch_size=1) == texts(engine, PROMPTS, drawn)
    assert texts(engine, PROMPTS[:3], drawn) == texts(engine, PROMPTS, drawn)[:3]


def test_the_options_of_the_vicuna_recipe(engine: Engine) -> None:
    sampling = {"random_sampling_topk": 40, "random_sampling_topp": 0.75, "random_sampling_temp": 0.1}
    found = engine.generate(PROMPTS, GenerationConfig(beam_size=3, n_best=2, max_length=8, **sampling))
    assert [len(answers) for answers in found] == [2] * len(PROMPTS)
    assert all(best.score >= second.score for best, second in found)


def test_each_of_several_samples_ends_at_its_own_stop_string(engine: Engine) -> None:
    options = GenerationConfig(max_length=40, min_length=40, random_sampling_topk=0, n_best=20, stop=["a", "e", "i"])
    for answers in engine.generate([PROMPTS[0], PROMPTS[3]], options):
        assert len({len(answer.tokens) for answer in answers}) > 1
        assert not any(set("aei") & set(answer.text) for answer in answers)
        assert all(answer.finish_reason == "stop" for answer in answers if len(answer.tokens) < 40)


def test_temperature_zero_and_topk_one_are_greedy(engine: Engine) -> None:
    greedy = texts(engine, PROMPTS, GenerationConfig(max_length=8))
    assert (
        texts(engine, PROMPTS, GenerationConfig(max_length=8, random_sampling_topk=0, random_sampling_temp=0.0))
        == greedy
    )
    assert texts(engine, PROMPTS, GenerationConfig(max_length=8, random_sampling_topp=0.0)) == greedy


def test_streaming_stops_when_asked(engine: Engine) -> None:
    deltas = []
    for delta in engine.stream(PROMPTS[0], LONG, should_stop=lambda: len(deltas) == 4):
        deltas.append(delta)
    assert sum(delta.tokens for delta in deltas) == 4
    assert deltas[-1].finish_reason == "stopped"
    stream = engine.stream(PROMPTS[0], LONG)
    first = next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert engine.generate([PROMPTS[0]], LONG)[0][0].text.startswith(first.text)


def test_a_script_may_end_in_the_middle_of_a_stream(model: Path) -> None:
    """CTranslate2's thread calls Python for each token, which must not happen while the interpreter is torn down."""
    script = f"""
from onmt_llm import open_engine
engine = open_engine({str(model.with_name("ct2"))!r}, device="cpu")
stream = engine.stream("a b", max_length=5000, min_length=5000)
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_both_engines_score_alike(model: Path) -> None:
    ours, theirs = open_engine(model, device="cpu"), open_engine(model.with_name("ct2"), device="cpu")
    sequences = [["<s>", *"abcabc"], ["a"], [], ["<s>", "zzz", "b"]]
    for left, right, sequence in zip(ours.score(sequences), theirs.score(sequences), sequences, strict=True):
        assert len(left) == max(len(sequence) - 1, 0)
        assert left == pytest.approx(right, abs=1e-4)
    for engine in (ours, theirs):
        with pytest.raises(UnsupportedError, match="must be given no sources"):
            engine.score(sequences, sources=sequences)
        with pytest.raises(UnsupportedError, match="must be given no sources"):
            engine.logits(sequences[0], source=sequences[0])
    full = torch.from_numpy(ours.logits(sequences[0])).log_softmax(-1)
    ids = ours.codec.vocab.ids(sequences[0])
    assert ours.score(sequences)[0] == pytest.approx(
        [float(full[i, ids[i + 1]]) for i in range(len(ids) - 1)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_best": 2}, "n_best must be <= beam_size"),
        ({"n_best": 4, "beam_size": 3, "random_sampling_topk": 0}, "n_best must be <= beam_size"),
        ({"min_length": 9, "max_length": 5}, "min_length must be <= max_length"),
    ],
)
def test_contradictions_are_refused(engine: Engine, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.generate(PROMPTS, GenerationConfig(**options))


def test_what_ctranslate2_cannot_do_is_refused(model: Path) -> None:
    engine = open_engine(model.with_name("ct2"), device="cpu")
    for option, value in (
        ("length_penalty", "wu"),
        ("ratio", 1.0),
        ("coverage_penalty", "summary"),
        ("report_align", True),
    ):
        with pytest.raises(ConfigError, match=f"CTranslate2 Generator, which has no {option}"):
            engine.generate(PROMPTS, GenerationConfig(beam_size=2, **{option: value}))
    with pytest.raises(ConfigError, match="tgt_file_prefix"):
        engine.generate(PROMPTS, GenerationConfig(), prefixes=[["a"]] * len(PROMPTS))
    with pytest.raises(UnsupportedError, match="CTranslate2 cannot run"):
        open_engine(model.with_name("ct2"), device="cpu", compute_type="nonsense")


def test_beam_search_ignores_sampling_in_torch_and_says_so_once(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = open_engine(model, device="cpu")
    log._said.clear()
    with caplog.at_level(logging.INFO):
        options = GenerationConfig(
            max_length=8, beam_size=3, n_best=2, random_sampling_topk=40, random_sampling_temp=0.1
        )
        found = [texts(engine, PROMPTS, options) for _ in range(2)]
    assert found[0] == found[1] == texts(engine, PROMPTS, GenerationConfig(max_length=8, beam_size=3, n_best=2))
    assert sum("beam search" in record.message for record in caplog.records) == 1


def test_int8_float16_runs_on_the_cpu_and_says_how(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release(model, tmp_path / "half", quantization="int8_float16", verify="warn")
    log._said.clear()
    with caplog.at_level(logging.INFO):
        engine = open_engine(tmp_path / "half", device="cpu")
    assert engine.compute_type == "int8_float32"  # type: ignore[attr-defined]
    assert sum("int8_float32" in record.message for record in caplog.records) == 1
    assert engine.generate([PROMPTS[0]], LONG)[0][0].finish_reason == "length"


def test_an_encoder_decoder_answers_too(tmp_path: Path) -> None:
    config = tiny.seq2seq()
    engine = open_engine(write_checkpoint(tmp_path / "seq2seq", config), device="cpu")
    sources = [[*"abc", "</s>"], [], [*"ponmlk", "</s>"]]
    for options in (GenerationConfig(max_length=8), GenerationConfig(max_length=8, beam_size=4, n_best=2)):
        together = texts(engine, sources, options)
        assert [texts(engine, [source], options)[0] for source in sources] == together
    assert len(engine.score([["<s>", *"abc"]], sources=[sources[0]])[0]) == 3
    for missing in (None, [sources[0]], sources[:2]):
        with pytest.raises(DataError, match="source is missing"):
            engine.score([["<s>", "a"]] * 2, sources=missing)
    assert (
        streamed(engine, sources[0], GenerationConfig(max_length=8))[0]
        == texts(engine, sources[:1], GenerationConfig(max_length=8))[0][0]
    )


@pytest.mark.parametrize("compute_type", ["int8", "float32", "bfloat16"])
def test_the_torch_engine_runs_in_other_types(model: Path, compute_type: str) -> None:
    engine = open_engine(model, device="cpu", compute_type=compute_type)
    exact = open_engine(model, device="cpu")
    error = abs(engine.logits(PROMPTS[0]) - exact.logits(PROMPTS[0])).max()
    assert error == 0 if compute_type == "float32" else 0 < error < 1


def test_missing_and_incomplete_models(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        open_engine(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"must hold config.yaml, config.json, vocabulary.json"):
        open_engine(broken)
    for name in ("config.yaml", "config.json", "vocabulary.json", "vocab.txt"):
        (broken / name).write_bytes((model.with_name("ct2") / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        open_engine(broken)
    write_manifest(broken)
    with pytest.raises(CheckpointError, match=r"cannot read .*model.bin"):
        open_engine(broken)


def test_names_with_and_without_pt_find_the_release(model: Path) -> None:
    assert json.loads((model.with_name("ct2") / "release_report.json").read_text())["verdict"] == "pass"
    assert type(open_engine(f"{model.with_name('ct2')}.pt", device="cpu")).__name__ == "Ct2Generator"


@pytest.fixture(scope="module", params=["rotary", "sinusoidal", "alibi"])
def short(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of at most eight positions, and its release."""
    config = CONFIG.model_copy(update={"position": request.param, "max_position": 8})
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("short") / request.param, config)
    release(checkpoint, checkpoint.with_name("ct2"), text=" ".join(VOCAB[4:10]), verify="off")
    return checkpoint


@pytest.mark.parametrize("kind", ["torch", "ct2"])
def test_a_prompt_beyond_the_models_positions_is_counted_or_refused(
    short: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(short if kind == "torch" else short.with_name("ct2"), device="cpu")
    prompts = [["<s>", "a"], ["<s>", *"abcdefgh"], ["<s>", *"abcdefghij"]]
    options = GenerationConfig(max_length=3)
    calls = [lambda: engine.generate(prompts, options), lambda: engine.score(prompts)]
    for call in calls:
        caplog.clear()
        log._said.clear()
        if kind == "ct2" and short.name == "sinusoidal":
            with pytest.raises(DataError, match="= 8 tokens with sinusoidal positions, but 2 of 3 inputs"):
                call()
        else:
            call()
            (told,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
            assert "max_position = 8" in told and "2 of 3 inputs (the first is number 2)" in told and "11" in told


def test_an_answer_beyond_a_table_of_positions_is_one_sentence(short: Path) -> None:
    engine = open_engine(short.with_name("ct2"), device="cpu")
    if short.name == "sinusoidal":
        with pytest.raises(DataError, match="CTranslate2 cannot answer this"):
            engine.generate([["<s>", *"abc"]], LONG)
        with pytest.raises(DataError, match="CTranslate2 cannot answer this"):
            list(engine.stream(["<s>", *"abc"], LONG))
    else:
        assert engine.generate([["<s>", *"abc"]], LONG)


def test_a_beam_that_memory_cannot_hold_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onmt_llm.generate.torch import engine as torch_engine

    engine = open_engine(model, device="cpu")
    monkeypatch.setattr(torch_engine, "available_memory", lambda: 1 << 20)
    wide = GenerationConfig(max_length=3, beam_size=1024)
    with pytest.raises(ConfigError, match="beam_size and n_best must leave 6 inputs room in memory"):
        engine.generate([prompt for prompt in PROMPTS if prompt] * 2, wide, batch_size=6)
    assert engine.generate(PROMPTS, GenerationConfig(max_length=3))


@pytest.mark.parametrize("kind", ["model", "ct2"])
def test_a_seed_of_64_bits_is_one_for_both_engines(model: Path, kind: str) -> None:
    engine = open_engine(model.with_name(kind), device="cpu")
    assert engine.generate(PROMPTS, GenerationConfig(max_length=3, random_sampling_topk=5, seed=2**63 - 1))
