"""A CTranslate2 float32 release of every encoder-decoder architecture that we release, against our own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch

import tiny
from onmt_llm.checkpoint.load import load_model
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.engine import Engine
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release

VOCAB, SRC_VOCAB = tiny.tokens(40), tiny.tokens(28, "v")
BASE = {**tiny.BASE, "encoder_layers": 2, "vocab_size": 40}
BIASES = {"attn_bias": True, "attn_out_bias": True, "ffn_bias": True, "lm_head_bias": True}
LLAMA = {**tiny.LLAMA, "kv_heads": None, "norm_eps": 1e-5}
T5 = {
    "norm": "rmsnorm",
    "position": "t5",
    "relative_buckets": 8,
    "relative_max_distance": 12,
    "relative_shared": True,
    "scale_attention": False,
    "share_embeddings": True,
}
FEATURES = [{"vocab_size": 6, "size": 4}, {"vocab_size": 8, "size": 8}]
ARCHITECTURES = {
    "opennmt": {**BIASES, "scale_embeddings": True},
    "opennmt, all embeddings shared": {"share_embeddings": True, "tie_embeddings": True, "scale_embeddings": True},
    "marian": {
        **BIASES,
        "norm_position": "post",
        "share_embeddings": True,
        "tie_embeddings": True,
        "activation": "silu",
    },
    "concat sinusoids, more layers in the encoder": {"encoder_layers": 3, "decoder_layers": 1, "sinusoid": "concat"},
    "separate vocabularies": {"src_vocab_size": 28, "norm_bias": False},
    "learned": {"position": "learned", "max_position": 80, "activation": "gelu_tanh"},
    "rotary, rms, gated": LLAMA,
    "grouped, partial rotary, theta": {**LLAMA, "kv_heads": 2, "rope": {"theta": 5e4, "rotary_dim": 4}},
    "linear rope, odd heads": {**LLAMA, "head_dim": 6, "kv_heads": 1, "rope": {"scaling": "linear", "factor": 2.0}},
    "llama 3 rope": {**LLAMA, "rope": {"scaling": "llama3", "factor": 8.0, "original_max_position": 16}},
    "shaw": {**BIASES, "position": "shaw", "relative_positions": 4},
    "shaw, grouped, rms": {"position": "shaw", "relative_positions": 3, "kv_heads": 2, "norm": "rmsnorm"},
    "t5": {**T5, "tie_embeddings": True, "scale_logits": True},
    "t5 1.1": {**T5, "ffn_gated": True, "activation": "gelu_tanh", "head_dim": 6},
    "t5, a table per layer, scaled": {**T5, "scale_logits": True, "relative_shared": False},
    "features beside": {"src_features": FEATURES},
    "features added": {
        "src_features": [{**f, "size": 32} for f in FEATURES],
        "feat_merge": "sum",
        "scale_embeddings": True,
    },
}


def write_checkpoint(directory: Path, config: ModelConfig, **changes: Any) -> Path:
    src_vocab = SRC_VOCAB if config.src_vocab_size else None
    return tiny.write_checkpoint(directory, config, VOCAB, src_vocab=src_vocab, **changes)


@pytest.fixture(scope="module", params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    directory = tmp_path_factory.mktemp("parity")
    checkpoint = write_checkpoint(directory / "model", ModelConfig.model_validate({**BASE, **request.param}))
    report = release(checkpoint, directory / "ct2", text=". ".join(" ".join(sequence(n, n)) for n in (3, 9, 20)))
    assert report["figures"]["greedy_agreement"] == 1 and report["figures"]["n_sentences"] == 3
    return open_engine(checkpoint, device="cpu"), open_engine(directory / "ct2", device="cpu")


def sequence(seed: int, length: int, *, source: bool = True, engine: Engine | None = None) -> list[str]:
    rng = np.random.default_rng(seed)
    vocab = engine.codec.src_vocab if engine is not None and source else VOCAB
    tokens = [list(vocab)[i] for i in rng.integers(3, 28, length)]
    features = engine.codec.feature_vocabs if engine is not None and source else []
    return ["￨".join([token, *(f"f{rng.integers(0, 5)}" for _ in features)]) for token in tokens]


def test_scores_of_targets(engines: tuple[Engine, Engine]) -> None:
    ours, theirs = engines
    lengths = (1, 7, 30, 50, 2)
    sources = [sequence(seed, length, engine=ours) for seed, length in enumerate(lengths)]
    targets = [["<s>", *sequence(seed + 9, 60 - length, source=False)] for seed, length in enumerate(lengths)]
    targets[1].append("</s>")
    targets[2] = ["<s>", "</s>"]
    targets[3] = ["<s>"]
    scores = theirs.score(targets, sources=sources)
    assert [len(one) for one in scores] == [len(target) - 1 for target in targets]
    for log_probs, expected in zip(scores, ours.score(targets, sources=sources), strict=True):
        assert log_probs == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        GenerationConfig(max_length=20),
        GenerationConfig(max_length=20, repetition_penalty=1.3, block_ngram_repeat=2, min_length=6),
    ],
    ids=["greedy", "penalties"],
)
def test_translations_and_their_scores(engines: tuple[Engine, Engine], options: GenerationConfig) -> None:
    ours, theirs = engines
    for (answer,), (other,) in zip(*(engine.generate(sources(ours), options) for engine in engines), strict=True):
        assert answer.tokens == other.tokens and answer.finish_reason == other.finish_reason
        if not options.block_ngram_repeat:  # what CTranslate2 bans leaves its probability to the others
            assert answer.score == pytest.approx(other.score, abs=2e-4)
    assert [one.tokens for (one,) in theirs.generate(sources(ours), options, batch_size=1)] == [
        one.tokens for (one,) in theirs.generate(sources(ours), options)
    ]


@pytest.mark.parametrize("length_penalty", ["avg", "none"])
def test_beam_search(engines: tuple[Engine, Engine], length_penalty: str) -> None:
    """With a length penalty CTranslate2 ends a search as soon as the beam is full of ended hypotheses, so that its best
    may be another; what it says of its answers is true."""
    ours, theirs = engines
    options = GenerationConfig(max_length=12, beam_size=4, n_best=2, length_penalty=length_penalty)
    same = 0
    for source, found, expected in zip(
        sources(ours), *(engine.generate(sources(ours), options) for engine in (theirs, ours)), strict=True
    ):
        same += found[0].tokens == expected[0].tokens
        for answer in found:
            end = ["</s>"] if answer.finish_reason == "stop" else []
            (log_probs,) = ours.score([["<s>", *answer.tokens, *end]], sources=[source])
            length = len(log_probs) + 1 if length_penalty == "avg" else 1
            assert answer.score == pytest.approx(sum(log_probs) / length, abs=2e-4)
    assert same >= (2 if length_penalty == "avg" else 7)


@pytest.mark.parametrize("start", [["w3", "{tgt_lang}"], ["{tgt_lang}"], ["w3", "w4", "{tgt_lang}"]], ids=len)
def test_what_the_decoder_is_given(tmp_path: Path, start: list[str]) -> None:
    """A start token that depends on the language, and forced tokens after it: in answers, scores, limits, streams."""
    languages = {"tokens": {"de": "w30", "fr": "w31"}, "tgt": "de"}
    sequences = {"src_suffix": ["</s>"], "decoder_start": start}
    checkpoint = write_checkpoint(
        tmp_path / "m", ModelConfig.model_validate(BASE), sequences=sequences, languages=languages
    )
    report = release(checkpoint, tmp_path / "ct2", text="w4 w5. w6 w7 w3 w9.")
    assert report["figures"]["greedy_agreement"] == 1 and report["figures"]["max_abs_dlogp"] < 2e-4
    opened = [open_engine(path, device="cpu") for path in (checkpoint, tmp_path / "ct2")]
    greedy: dict[str, list[list[str]]] = {}
    for code, token in (("de", "w30"), ("fr", "w31")):
        ours, theirs = (engine.for_languages(tgt=code) for engine in opened)
        given = ours.codec.start_tokens
        assert theirs.codec.start_tokens == given == [*start[:-1], token]
        for beam_size in (4, 1):
            options = GenerationConfig(max_length=9, beam_size=beam_size, length_penalty="none", max_length_ratio=0)
            found = [engine.generate(sources(ours), options) for engine in (ours, theirs)]
            for source, (answer,), (other,) in zip(sources(ours), *found, strict=True):
                assert (answer.tokens, answer.finish_reason) == (other.tokens, other.finish_reason)
                assert len(answer.tokens) == 9 or answer.finish_reason == "stop"
                end = ["</s>"] if answer.finish_reason == "stop" else []
                (log_probs,) = ours.score([[*given, *answer.tokens, *end]], sources=[source])
                assert [answer.score, other.score] == pytest.approx([sum(log_probs[len(given) - 1 :])] * 2, abs=2e-4)
        greedy[code] = [answer.tokens for (answer,) in found[0]]
        for engine in (ours, theirs):
            streamed = "".join(delta.text for delta in engine.stream(sources(ours)[1], options))
            assert streamed == " ".join(greedy[code][1])
    assert greedy["de"] != greedy["fr"]


def test_banned_tokens_are_never_generated(tmp_path: Path) -> None:
    model = ModelConfig.model_validate(BASE)
    (free,) = open_engine(write_checkpoint(tmp_path / "free", model), device="cpu").generate(
        [sequence(1, 12)], GenerationConfig(max_length=9)
    )[0]
    checkpoint = write_checkpoint(tmp_path / "m", model, banned_tokens=[free.tokens[1], free.tokens[4]])
    release(checkpoint, tmp_path / "ct2", verify="off")
    for path in (checkpoint, tmp_path / "ct2"):
        engine = open_engine(path, device="cpu")
        for beam_size in (1, 4):
            options = GenerationConfig(max_length=9, beam_size=beam_size)
            for answers in engine.generate(sources(engine), options):
                assert not {free.tokens[1], free.tokens[4]}.intersection(answers[0].tokens)


def sources(engine: Engine) -> list[list[str]]:
    return [sequence(seed, length, engine=engine) for seed, length in enumerate((3, 12, 1, 5, 5, 30, 8, 8))]


@pytest.mark.parametrize(("layer", "heads"), [(-1, 1), (0, 3), (-2, 0)])
def test_alignments_come_from_the_layer_and_heads_that_the_checkpoint_names(
    tmp_path: Path, layer: int, heads: int
) -> None:
    config = ModelConfig.model_validate({**BASE, "position": "shaw", "relative_positions": 3, "kv_heads": 2})
    checkpoint = write_checkpoint(tmp_path / "m", config, alignment_layer=layer, alignment_heads=heads)
    release(checkpoint, tmp_path / "ct2", verify="off")
    source, target = sequence(1, 7), ["<s>", *sequence(2, 6, source=False)]
    translator = ctranslate2.Translator(str(tmp_path / "ct2"))
    (result,) = translator.translate_batch(
        [source], [target[1:]], beam_size=1, max_decoding_length=8, return_attention=True
    )
    model, codec = load_model(checkpoint), open_engine(checkpoint, device="cpu").codec
    with torch.no_grad():
        memory = model.encode(torch.tensor([codec.vocab.ids(source)]))
        expected = model.decode_with_alignment(torch.tensor([codec.vocab.ids(target)]), memory, align=(layer, heads))[
            1
        ][0]
    np.testing.assert_allclose(np.array(result.attention[0])[:6], expected[:6], atol=1e-5)
