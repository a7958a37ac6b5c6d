"""The CTranslate2 engine of encoder-decoder models keeps the promises of every engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import tiny
from onmt_llm.checkpoint.directory import write_manifest
from onmt_llm.checkpoint.load import load_model
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from onmt_llm.generate.engine import Engine
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release

VOCAB = ["<unk>", "<s>", "</s>", "<end>", *(chr(ord("a") + i) for i in range(20))]
SOURCES = [["v1", "v2"], [], ["v3"], [f"v{i}" for i in (5, 4, 3, 2, 1, 9, 8)], ["v7", "nonsense", "v2"]]
LONG = GenerationConfig(max_length=15, min_length=15, max_length_ratio=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two vocabularies and rows without a token on both sides, and its release beside it."""
    directory = tmp_path_factory.mktemp("translator")
    config = tiny.seq2seq(vocab_size=26, src_vocab_size=16)
    model = tiny.write_checkpoint(
        directory / "model",
        config,
        VOCAB,
        src_vocab=tiny.tokens(14, "v"),
        seed=5,
        scale=0.4,
        norm_bias=1.0,
        stop_tokens=["<end>"],
    )
    release(model, directory / "ct2", text="v1 v2 v3. v4 v5")
    return model


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return open_engine(model.with_name("ct2"), device="cpu")


def texts(engine: Engine, options: GenerationConfig, **batching: int) -> list[list[str]]:
    return [[answer.text for answer in answers] for answers in engine.generate(SOURCES, options, **batching)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        GenerationConfig(max_length=10),
        GenerationConfig(max_length=10, repetition_penalty=1.5, block_ngram_repeat=2, min_length=5),
        GenerationConfig(max_length=8, beam_size=3, n_best=2),
    ],
    ids=["greedy", "penalties", "beam"],
)
def test_answers_keep_their_order_and_ignore_their_neighbours(engine: Engine, options: GenerationConfig) -> None:
    together = texts(engine, options)
    assert together[1] == [""] * options.n_best
    assert texts(engine, options, batch_size=2) == texts(engine, options, batch_size=1) == together


def test_the_stream_is_the_answer_and_that_of_the_torch_engine(engine: Engine, model: Path) -> None:
    torch_engine = open_engine(model, device="cpu")
    for options in (GenerationConfig(max_length=10), GenerationConfig(max_length=20, stop=["b"]), LONG):
        assert texts(engine, options) == texts(torch_engine, options)
        for source in SOURCES:
            (answer,) = engine.generate([source], options)[0]
            deltas = list(engine.stream(source, options))
            assert "".join(delta.text for delta in deltas) == answer.text
            assert deltas[-1].finish_reason == answer.finish_reason
    stopped = list(engine.stream(SOURCES[0], LONG, should_stop=lambda: True))
    assert stopped[-1].finish_reason == "stopped"


def test_seeds_stops_and_bans(model: Path) -> None:
    sampling = {"random_sampling_topk": 0, "random_sampling_temp": 3.0, "n_best": 4, "ban_unk_token": True}
    options = LONG.model_copy(update={**sampling, "seed": 3})
    engine, again, other = (open_engine(model.with_name("ct2"), device="cpu", threads=1) for _ in range(3))
    drawn = texts(engine, options)
    assert texts(again, options) == drawn
    assert texts(other, options.model_copy(update={"seed": 4})) != drawn
    with pytest.raises(UnsupportedError, match="one batch at a time, but this one computes 2"):
        texts(open_engine(model.with_name("ct2"), device="cpu", threads=2), options)
    for answers in engine.generate([SOURCES[0], SOURCES[3]], options):
        assert all(len(answer.tokens) == 15 and set(answer.tokens) <= {"<s>", *VOCAB[4:]} for answer in answers)


def test_scores_need_a_source_and_a_start(engine: Engine) -> None:
    with pytest.raises(DataError, match="source is missing"):
        engine.score([["<s>", "a"]])
    with pytest.raises(DataError, match="must begin with '<s>', but begins with 'a'"):
        engine.score([["a", "b"]], sources=[SOURCES[0]])
    assert engine.score([[], ["<s>"]], sources=[SOURCES[0], SOURCES[0]]) == [[], []]
    with pytest.raises(UnsupportedError, match="no logits"):
        engine.logits(["<s>", "a"], source=SOURCES[0])


def test_what_it_cannot_do_is_refused(engine: Engine, model: Path, tmp_path: Path) -> None:
    with pytest.raises((UnsupportedError, ConfigError), match="length_penalty"):
        engine.generate(SOURCES, GenerationConfig(beam_size=2, length_penalty="wu"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.yaml", "config.json", "source_vocabulary.json", "vocab.txt"):
        (broken / name).write_bytes((model.with_name("ct2") / name).read_bytes())
    (broken / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"must hold vocabulary\.json"):
        open_engine(broken)


def test_alignments_are_those_of_the_torch_engine(engine: Engine, model: Path) -> None:
    options = GenerationConfig(max_length=6, replace_unk=True)
    for ours, theirs in zip(
        open_engine(model, device="cpu").generate(SOURCES, options), engine.generate(SOURCES, options), strict=True
    ):
        assert ours[0].tokens == theirs[0].tokens and ours[0].alignment == theirs[0].alignment
    reported = options.model_copy(
        update={"replace_unk": False, "report_align": True, "alignment_layer": -1, "alignment_heads": 1}
    )
    assert engine.generate(SOURCES[:1], reported)[0][0].alignment is not None
    with pytest.raises(UnsupportedError, match="one alignment layer, here -1 with 1 heads"):
        engine.generate(SOURCES, GenerationConfig(report_align=True, alignment_layer=0))
    with pytest.raises(ConfigError, match="tgt_file_prefix"):
        engine.generate(SOURCES[:1], options, prefixes=[["a"]])


def test_a_full_context_alignment_looks_ahead(model: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(model, wide)
    text = (wide / "config.yaml").read_text()
    (wide / "config.yaml").write_text(text.replace("full_context_alignment: false", "full_context_alignment: true"))
    write_manifest(wide)
    varied = {"random_sampling_topk": 0, "random_sampling_temp": 20.0, "seed": 3}
    options = LONG.model_copy(update={"report_align": True, "alignment_layer": -1, "alignment_heads": 0, **varied})
    source = SOURCES[3]
    (near,) = open_engine(model, device="cpu").generate([source], options)
    (far,) = (engine := open_engine(wide, device="cpu")).generate([source], options)
    assert near[0].tokens == far[0].tokens
    with torch.inference_mode():
        net, codec = load_model(wide), engine.codec
        tgt_BT = torch.tensor([[codec.vocab.bos_id, *codec.vocab.ids(far[0].tokens)]])
        memory_BSD = net.encode(torch.tensor([codec.src_vocab.ids(source)]))
        real_BT = torch.ones_like(tgt_BT, dtype=torch.bool)
        attention_BTS = net.decode_with_alignment(tgt_BT, memory_BSD, align=(-1, 0), full_context_BT=real_BT)[1]
    assert far[0].alignment == tuple(attention_BTS[0, :-1].argmax(dim=-1).tolist())
    assert far[0].alignment != near[0].alignment
    release(wide, tmp_path / "ct2", text="v1 v2 v3. v4 v5")
    with pytest.raises(UnsupportedError, match="full_context_alignment"):
        open_engine(tmp_path / "ct2", device="cpu").generate([source], options)
