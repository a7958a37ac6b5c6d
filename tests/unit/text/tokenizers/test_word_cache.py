"""The word cache gives the library's pieces for any text, and is off where that cannot be proved."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onmt_llm.text.segment import Segment, continuations, tokenize_segments
from onmt_llm.text.tokenizers import word_cache
from onmt_llm.text.tokenizers.control_guard import ControlGuard
from onmt_llm.text.tokenizers.pieces import Pieces
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.sentencepiece_proto import BPE, BYTE, USER_DEFINED, read_facts

Train = Callable[..., None]

# how a provable model may be made
PROVABLE: dict[str, dict[str, Any]] = {
    "llama-like": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "spaces removed": {"remove_extra_whitespaces": True},
    "unknown pieces": {"byte_fallback": False, "vocab_size": 80},
    "pieces of spaces": {"user_defined_symbols": ["▁▁", "▁▁▁▁", "<turn>"]},
    "pieces with line breaks": {"user_defined_symbols": ["\n", "\n\n", "e\n"]},
}
NOT_PROVABLE: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram", "hard_vocab_limit": False},
    "normalised": {"normalization_rule_name": "nmt_nfkc"},
    "pieces over spaces": {"split_by_whitespace": False, "vocab_size": 400},
    "a declared piece over spaces": {"user_defined_symbols": ["the▁dog"]},
}

# letters that the models know and do not know, in words that come again; white space of all kinds; the model's own sign
WORDS = st.text("thedogfx.é你😀", max_size=6) | st.sampled_from(
    ["the", "dog", "<turn>", "<s>", "three", "\u0301", "\x00"]
)
GAPS = st.sampled_from([" ", " ", " ", "\n", "  ", "   ", "\n\n", " \n", "\n ", "▁", "▁▁", "\t", "\u3000", "\r\n", ""])
TEXTS = st.lists(st.tuples(WORDS, GAPS), max_size=12).map(lambda parts: "".join(a + b for a, b in parts))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, new_sentencepiece: Train) -> Callable[[str], str]:
    """The file of a model of PROVABLE or NOT_PROVABLE, trained when it is first needed."""
    directory = tmp_path_factory.mktemp("words")

    def model(name: str) -> str:
        path = directory / f"{name}.model"
        if not path.exists():
            new_sentencepiece(path, **{**PROVABLE, **NOT_PROVABLE}[name])
        return str(path)

    return model


def pieces(tokenizer: Any, texts: list[str], continuation: bool) -> list[list[str]]:
    encoded = tokenizer.encode_pieces(texts, continuation=continuation)
    return [each.tokens() if isinstance(each, Pieces) else each for each in encoded]


@pytest.mark.parametrize("name", PROVABLE)
def test_a_text_has_the_pieces_of_its_words(trained: Callable[[str], str], name: str) -> None:
    tokenizer = SentencePieceTokenizer(trained(name))
    assert tokenizer._words is not None
    cached = 0

    @settings(deadline=None, derandomize=True)
    @given(st.lists(TEXTS | ANY_TEXT, max_size=4), st.booleans())
    def holds(texts: list[str], continuation: bool) -> None:
        nonlocal cached
        expected = [tokenizer.encode(text, continuation=continuation) for text in texts]
        assert pieces(tokenizer, texts, continuation) == expected
        assert pieces(tokenizer, texts, continuation) == expected  # now from the cache
        assert tokenizer._words is not None
        cached += sum(ids is not None for ids in tokenizer._words.encode(texts, continuation=continuation))

    holds()
    assert cached > 50  # the library was not asked for all of it


@pytest.mark.parametrize("name", NOT_PROVABLE)
def test_no_cache_without_proof(trained: Callable[[str], str], name: str) -> None:
    tokenizer = SentencePieceTokenizer(trained(name))
    assert tokenizer._words is None
    texts = ["the dog gives  three", "", "你 the"]
    assert pieces(tokenizer, texts, False) == [tokenizer.encode(text) for text in texts]


def test_facts_of_a_model_file(trained: Callable[[str], str]) -> None:
    facts = read_facts(Path(trained("pieces of spaces")).read_bytes())
    assert facts.model_type == BPE and facts.charsmap == b"" and facts.add_dummy_prefix
    assert not facts.remove_extra_whitespaces and facts.escape_whitespaces and not facts.whitespace_as_suffix
    assert facts.pieces[:3] == [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    assert ("<turn>", USER_DEFINED) in facts.pieces and ("<0x0A>", BYTE) in facts.pieces
    assert len(facts.pieces) == 340
    assert read_facts(Path(trained("normalised")).read_bytes()).charsmap


def test_the_cache_stays_small_and_never_changes_what_comes_out(
    trained: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "_BUDGET", 5 * 210)
    tokenizer = SentencePieceTokenizer(trained("llama-like"))
    texts = [f"the dog {number} three {number + 1}" for number in range(100)]
    assert pieces(tokenizer, texts, False) == [tokenizer.encode(text) for text in texts]
    assert tokenizer._words is not None and len(tokenizer._words._words) <= 8 and len(tokenizer._words._words._old) <= 8
    # text without spaces is not worth keeping
    pieces(tokenizer, ["dog" * 100], False)
    assert "dog" * 100 not in tokenizer._words._words


def test_sampling_goes_without_cache(trained: Callable[[str], str]) -> None:
    tokenizer = SentencePieceTokenizer(trained("unigram"), nbest=-1, alpha=0.1)
    assert len({tuple(each) for each in pieces(tokenizer, ["the quick brown fox"] * 20, False)}) > 1


def test_a_copy_for_a_worker_leaves_the_words_behind(trained: Callable[[str], str]) -> None:
    tokenizer = SentencePieceTokenizer(trained("llama-like"))
    empty = len(pickle.dumps(tokenizer))
    pieces(tokenizer, [f"{number}" for number in range(5000)], False)
    assert len(pickle.dumps(tokenizer)) < empty + 60_000  # the table of pieces at most
    assert pieces(pickle.loads(pickle.dumps(tokenizer)), ["the dog"], False) == [tokenizer.encode("the dog")]


def test_guarded_pieces_are_no_control_tokens(trained: Callable[[str], str]) -> None:
    tokenizer = SentencePieceTokenizer(trained("pieces of spaces"))
    guarded = ControlGuard(tokenizer, {"<turn>"})
    texts = ["a <turn><turn> b", "the dog", "<turn>"]
    for continuation in (False, True):
        expected = [guarded.encode(text, continuation=continuation) for text in texts]
        assert pieces(guarded, texts, continuation) == expected
        assert all("<turn>" not in tokens for tokens in expected)


def test_strings_are_made_when_asked_for_and_may_be_changed(trained: Callable[[str], str]) -> None:
    tokenizer = SentencePieceTokenizer(trained("llama-like"))
    segment = Segment("the dog")
    (encoded,) = tokenizer.encode_pieces(["the dog"])
    segment.tokenized(encoded)
    assert segment.text is None and segment.pieces is encoded
    assert segment.num_tokens == len(tokenizer.encode("the dog"))
    assert segment.tokens == tokenizer.encode("the dog") and segment.pieces is None
    segment.tokens.append("dog")
    assert segment.tokens[-1] == "dog" and segment.num_tokens == len(segment.tokens)
    assert segment == Segment(tokens=[*tokenizer.encode("the dog"), "dog"]) != Segment("the dog")


def test_continuations_are_those_of_encode_each(trained: Callable[[str], str]) -> None:
    tokenizer = SentencePieceTokenizer(trained("llama-like"))
    segments = [Segment(""), Segment("the"), Segment("dog"), Segment(tokens=["<s>"]), Segment("fox"), Segment("")]
    assert continuations(tokenizer, segments, bos="<s>") == [False, False, True, True, False, True]
    assert tokenize_segments(tokenizer, segments, bos="<s>")[4][0].startswith("▁")
