"""Tokens around the texts of an encoder-decoder, and the languages of a multilingual model."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.checkpoint import CheckpointConfig, LanguageTokens, SequenceTokens, SpecialTokens
from onmt_llm.config.model import ModelConfig
from onmt_llm.data.example import Encoded, Encoder, Example
from onmt_llm.errors import ConfigError
from onmt_llm.text.codec import Codec
from onmt_llm.text.languages import with_start
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from onmt_llm.text.vocab import Vocab

LANGUAGES = {"en": "__en__", "fr": "__fr__", "frp": "__frp__"}
TOKENS = ["<unk>", "<s>", "</s>", "<pad>", *LANGUAGES.values(), "a", "b", "c"]
NLLB = {"src_prefix": ["{src_lang}"], "src_suffix": ["</s>"], "decoder_start": ["</s>", "{tgt_lang}"]}
MBART = {"src_suffix": ["</s>", "{src_lang}"], "decoder_start": ["{tgt_lang}"]}
MARIAN = {"src_prefix": ["{tgt_lang}"], "src_suffix": ["</s>"], "decoder_start": ["<pad>"]}
T5 = {"src_suffix": ["</s>"], "decoder_start": ["<pad>"]}


def codec(sequences: dict[str, list[str]], task: str = "seq2seq", **languages: Any) -> Codec:
    config = CheckpointConfig(
        model=ModelConfig(encoder_layers=0 if task == "lm" else 1, vocab_size=len(TOKENS)),
        specials=SpecialTokens(),
        sequences=SequenceTokens.model_validate(sequences),
        languages=LanguageTokens(tokens=LANGUAGES, **languages),
    )
    return Codec(config, Vocab(TOKENS, config.specials), WhitespaceTokenizer())


@pytest.mark.parametrize(
    ("sequences", "source", "start", "fixed"),
    [
        (NLLB, "__en__ a b </s>", "</s> __fr__", "</s>"),
        (MBART, "a b </s> __en__", "__fr__", None),
        (MARIAN, "__fr__ a b </s>", "<pad>", "<pad>"),
        (T5, "a b </s>", "<pad>", "<pad>"),
        ({}, "a b", "<s>", "<s>"),
    ],
    ids=["nllb", "mbart", "marian", "t5", "none"],
)
def test_what_encoder_and_decoder_are_given(
    sequences: dict[str, list[str]], source: str, start: str, fixed: str | None
) -> None:
    used = {token for tokens in sequences.values() for token in tokens}
    languages = {side: code for side, code in (("src", "en"), ("tgt", "fr")) if f"{{{side}_lang}}" in used}
    filled = codec(sequences).for_languages(**languages)
    assert filled.encode("a b") == source.split()
    assert filled.unframed(source.split()) == ["a", "b"]
    assert filled.start_tokens == start.split() and filled.fixed_start == fixed
    assert filled.decode([*filled.start_tokens, "a", "</s>"]) == "a"
    as_default = codec(sequences, **languages)
    assert as_default.encode("a b") == source.split() and as_default.start_tokens == start.split()


@pytest.mark.parametrize("sequences", [NLLB, MBART, MARIAN, T5, {}], ids=["nllb", "mbart", "marian", "t5", "none"])
def test_an_example_is_encoded_as_it_is_translated(sequences: dict[str, list[str]]) -> None:
    given = {"src": "en" if sequences in (NLLB, MBART) else None, "tgt": None if sequences in (T5, {}) else "fr"}
    filled = codec(sequences).for_languages(**given)
    example = Example([Segment(tokens=["a", "b"])], [Segment(tokens=["c"])], align=[(1, 0)])
    encoded = Encoder(filled)(example)
    assert isinstance(encoded, Encoded) and encoded.src is not None and encoded.align is not None
    assert filled.vocab.tokens(encoded.src.tolist()) == filled.encode("a b")
    assert filled.vocab.tokens(encoded.tgt.tolist()) == [*filled.start_tokens, "c"]
    assert filled.vocab.tokens(encoded.labels.tolist()) == [*filled.start_tokens[1:], "c", "</s>"]
    ((label, source),) = encoded.align.tolist()
    assert filled.vocab.tokens([encoded.labels[label], encoded.src[source]]) == ["c", "b"]
    assert Encoder(filled)(Example([], [Segment(tokens=["c"])])) is None


def test_a_language_is_given_by_code_or_token() -> None:
    model = codec(NLLB)
    assert model.for_languages("__en__", "fr").start_tokens == ["</s>", "__fr__"]
    with pytest.raises(ConfigError, match="'frr'") as error:
        model.for_languages("en", "frr")
    assert "fr, frp" in str(error.value.hint)
    with pytest.raises(ConfigError, match="src_lang"):
        model.encode("a")
    with pytest.raises(ConfigError, match="tgt_lang"):
        _ = model.for_languages("en").start_tokens


def test_a_model_without_language_tokens_takes_any_codes() -> None:
    for model in (codec(T5), codec({}, task="lm")):
        bound = model.for_languages("en", "xx")
        assert (bound.sequences, bound.languages) == (model.sequences, ("en", "xx"))


def test_a_text_is_never_a_language_token() -> None:
    assert "__fr__" not in codec(NLLB, src="en", tgt="fr").tokenizer.encode("a __fr__ b")


def started(start: str | None, **settings: Any) -> list[str]:
    vocab = Vocab(["<unk>", "<s>", "</s>", "<x>", "__fr__"], SpecialTokens())
    layers = {"encoder_layers": 1, **settings.pop("model", {})}
    config = CheckpointConfig.model_validate({"model": layers, **settings})
    return Codec(with_start(config, start, vocab), vocab, WhitespaceTokenizer()).start_tokens


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({}, ["<s>"], ["<x>"]),
        ({"sequences": {"decoder_start": ["</s>"]}}, ["</s>"], ["<x>"]),
        ({"sequences": {"decoder_start": ["</s>", "__fr__"]}}, ["</s>", "__fr__"], ["<x>", "__fr__"]),
        ({"model": {"encoder_layers": 0}}, ["<s>"], ["<x>"]),
        ({"model": {"encoder_layers": 0}, "specials": {"add_bos": False}}, [], ["<x>"]),
    ],
)
def test_a_start_token_of_the_options_is_the_first(
    settings: dict[str, Any], before: list[str], after: list[str]
) -> None:
    assert started(None, **settings) == before and started("<x>", **settings) == after
    with pytest.raises(ConfigError, match="must be in the checkpoint's vocabulary, but '<y>' is not"):
        started("<y>", **settings)


def test_only_a_language_model_may_start_with_nothing() -> None:
    assert started("", model={"encoder_layers": 0}) == []
    with pytest.raises(ConfigError, match="must be a token for an encoder-decoder"):
        started("")


def test_a_start_token_does_not_replace_a_language() -> None:
    settings = {
        "sequences": {"decoder_start": ["{tgt_lang}"]},
        "languages": {"tokens": {"fr": "__fr__"}, "tgt": "fr"},
    }
    assert started(None, **settings) == ["__fr__"]
    with pytest.raises(ConfigError, match="start with their language"):
        started("<x>", **settings)
