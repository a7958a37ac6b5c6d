"""Promises of all tokenisers, and the behaviour of each."""

from __future__ import annotations

import io
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onmt_llm.checkpoint.formats.tokenizer_files import from_sentencepiece
from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.data.workers.pickling import TOKENIZERS, Restricted
from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.text.placeholders import from_line, to_line
from onmt_llm.text.segment import Segment, tokenize_segments
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.control_guard import ControlGuard
from onmt_llm.text.tokenizers.open import open_tokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer

Tokenizers = dict[str, Tokenizer]
RandomTexts = Callable[[int], list[str]]


def stream(tokenizer: Tokenizer, tokens: list[str]) -> str:
    decoder = tokenizer.stream_decoder()
    return "".join([*map(decoder.push, tokens), decoder.flush()])


def test_line_breaks_go_there_and_back(tokenizer: Tokenizer) -> None:
    line = "Give three｟newline｠｟newline｠the dog｟newline｠"
    tokenizer.check_newline()
    tokens = tokenizer.encode(from_line(line))
    assert "".join(tokens).count("<0x0A>") + "".join(tokens).count("Ċ") + "".join(tokens).count("｟newline｠") == 3
    assert to_line(tokenizer.decode(tokens)) == line
    assert to_line(stream(tokenizer, tokens)) == line


def test_stream_equals_full_decode(tokenizer: Tokenizer, random_texts: RandomTexts) -> None:
    rng = random.Random(3)
    tokens = [tokenizer.encode(text) for text in random_texts(300)]
    strange = [
        "<0xE2>",
        "<0x96>",
        "<0x0A>",
        "▁",
        "￭",
        "｟newline｠",
        "｟mrk_begin_case_region_U｠",
        "a@@",
        "",
        "Ċ",
        "Ġ",
    ]
    mixed = [rng.sample(some, len(some)) + rng.choices(strange, k=3) for some in tokens]
    for some in tokens + mixed:
        assert stream(tokenizer, some) == tokenizer.decode(some)


def test_decode_reverses_encode(lossless: Tokenizer, random_texts: RandomTexts) -> None:
    texts = [text.replace("▁", "") for text in random_texts(500)]  # SentencePiece's own sign for a space
    for text, tokens in zip(texts, lossless.encode_batch(texts), strict=True):
        assert tokens == lossless.encode(text)
        assert lossless.decode(tokens) == text


def test_no_text_becomes_a_control_token_or_a_line_break(tokenizer: Tokenizer) -> None:
    control = {"</s>", "<s>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"}
    guarded = ControlGuard(tokenizer, control)
    text = "a </s> <s></s> <|im_end|> <|endoftext|> ｟newline｠ ｟mrk_case_modifier_C｠ <0x0A> b"
    for tokens in (guarded.encode(text), guarded.encode(text, continuation=True), guarded.encode_batch([text])[0]):
        assert control.isdisjoint(tokens)
        decoded = guarded.decode(tokens)
        assert "\n" not in decoded
        assert decoded.replace(" ", "") == text.replace(" ", "")


def use_all(tokenizer: Tokenizer) -> list[object]:
    """What a run asks of a tokeniser while it goes on."""
    segments = [Segment(tokens=["</s>"]), Segment("the dog")]
    return [
        tokenizer.fingerprint,
        tokenizer.encode("Give three tips"),
        tokenizer.encode("Give three tips", continuation=True),
        tokenize_segments(tokenizer, segments),
        tokenizer.vocab_tokens(),
        tokenizer.control_tokens,
    ]


def test_nothing_is_read_from_the_file_once_it_is_open(spec: TokenizerSpec, models: Path, tmp_path: Path) -> None:
    if spec.file is not None:
        shutil.copy(models / spec.file, tmp_path)
    opened = open_tokenizer(spec, tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    expected = use_all(open_tokenizer(spec, models))
    assert use_all(opened) == expected
    assert use_all(Restricted(io.BytesIO(pickle.dumps(opened)), TOKENIZERS).load()) == expected


def test_copies_for_worker_processes(tokenizer: Tokenizer) -> None:
    copy = Restricted(io.BytesIO(pickle.dumps(tokenizer)), TOKENIZERS).load()
    assert copy.encode("Give three\ntips", continuation=True) == tokenizer.encode("Give three\ntips", continuation=True)


@pytest.mark.parametrize("name", ["sentencepiece", "hf-prepend", "hf-metaspace", "onmt-none-sp"])
def test_a_continuation_has_no_dummy_prefix(tokenizers: Tokenizers, name: str) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.encode("dog")[0].startswith("▁")
    for text in ("dog", " dog", "\n\ndog", "  ", "é dog"):
        pieces = tokenizer.encode(text, continuation=True)
        assert tokenizer.decode([*tokenizer.encode("the"), *pieces]) == "the" + text
    assert tokenizer.encode("", continuation=True) == tokenizer.encode("") == []


def test_segments_are_encoded_as_parts_of_one_text(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["sentencepiece"]
    parts = [Segment("the dog"), Segment(" gives"), Segment(tokens=["</s>"]), Segment("the"), Segment(tokens=["<s>"])]
    encoded = tokenize_segments(tokenizer, [*parts, Segment("the")], bos="<s>")
    assert encoded[0][0] == "▁the" and encoded[2] == ["</s>"] and encoded[5] == ["▁the"]
    assert not encoded[3][0].startswith("▁")
    assert tokenizer.decode([piece for part in encoded[:2] for piece in part]) == "the dog gives"


def test_prepend_restarts_behind_control_tokens_and_metaspace_first_does_not(tokenizers: Tokenizers) -> None:
    parts = [Segment("the"), Segment(tokens=["</s>"]), Segment("the")]
    assert tokenizers["hf-prepend"].restarts_after_control
    assert tokenize_segments(tokenizers["hf-prepend"], parts)[2][0].startswith("▁")
    assert not tokenizers["hf-metaspace"].restarts_after_control
    assert not tokenize_segments(tokenizers["hf-metaspace"], parts)[2][0].startswith("▁")


def test_half_a_character_is_kept_back(tokenizers: Tokenizers) -> None:
    decoder = tokenizers["sentencepiece"].stream_decoder()
    pushed = [decoder.push(token) for token in ("▁a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xE2>", "▁b", "<0xE2>")]
    assert pushed == ["a", "", "", "", "😀", "", "\ufffd b", ""]
    assert decoder.flush() == "\ufffd"


def test_special_tokens_of_the_model_file(tokenizers: Tokenizers) -> None:
    assert tokenizers["sentencepiece"].control_tokens == {"<s>", "</s>"}
    assert tokenizers["hf-byte-level"].control_tokens == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"}
    assert "<think>" in tokenizers["hf-byte-level"].encode("a <think> b")  # added, but not special: text


def test_vocabulary_in_id_order(tokenizers: Tokenizers) -> None:
    pieces = tokenizers["sentencepiece"].vocab_tokens()
    assert pieces is not None and pieces[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and len(pieces) == 340
    added = tokenizers["hf-byte-level"].vocab_tokens()
    assert added is not None and added[:2] == ["<|endoftext|>", "<|im_start|>"] and added[-2:] == ["   ", "<think>"]
    assert tokenizers["whitespace"].vocab_tokens() is None


def test_a_model_that_drops_line_breaks_says_so(models: Path) -> None:
    tokenizer = SentencePieceTokenizer(models / "sp_lossy.model")
    assert tokenizer.decode(tokenizer.encode("  the   dog ")) == "the dog"
    with pytest.raises(DataError, match="would lose them"):
        tokenizer.check_newline()


def test_user_defined_pieces_with_a_role_are_cut(tmp_path: Path, new_sentencepiece: Callable[..., None]) -> None:
    new_sentencepiece(tmp_path / "sp.model", user_defined_symbols=["<turn>"])
    tokenizer = SentencePieceTokenizer(tmp_path / "sp.model")
    assert "<turn>" in tokenizer.encode("a <turn> b")
    guarded = ControlGuard(tokenizer, {"<turn>"})
    assert "<turn>" not in guarded.encode("a <turn><turn> b")
    assert guarded.decode(guarded.encode("a <turn><turn> b")) == "a <turn><turn> b"
    with pytest.raises(DataError, match="valid Unicode"):
        guarded.encode("\ud800")


def test_sampling_varies_and_still_decodes(models: Path) -> None:
    tokenizer = SentencePieceTokenizer(models / "sp.model", nbest=-1, alpha=0.1)
    samples = {tuple(tokenizer.encode("the quick brown fox")) for _ in range(20)}
    assert len(samples) > 1
    assert {tokenizer.decode(sample) for sample in samples} == {"the quick brown fox"}


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (TokenizerSpec(kind="sentencepiece"), ConfigError, "must name its model"),
        (TokenizerSpec(kind="sentencepiece", file="none.model"), DataError, "there is none at"),
        (TokenizerSpec(kind="sentencepiece", file="codes.bpe"), DataError, "must be a SentencePiece model"),
        (TokenizerSpec(kind="sentencepiece", file="pointer"), DataError, "Git LFS pointer"),
        (TokenizerSpec(kind="huggingface", file="sp.model"), DataError, "cannot be read as JSON"),
        (TokenizerSpec(kind="huggingface", file="suffixes.json"), UnsupportedError, "BPEDecoder"),
        (TokenizerSpec(kind="bpe", file="sp.model"), DataError, "BPE codes"),
        (TokenizerSpec(kind="bpe", file="codes.bpe", options={"speed": 3}), ConfigError, "speed"),
        (TokenizerSpec(kind="onmt_tokenize", options={"mode": "loud"}), ConfigError, "loud"),
        (TokenizerSpec(kind="onmt_tokenize", options={"joinr": 1}), ConfigError, "joinr"),
        (TokenizerSpec(kind="onmt_tokenize", options={"subword_type": "bpe"}), ConfigError, "no model"),
    ],
)
def test_errors_of_opening(models: Path, spec: TokenizerSpec, error: type[Exception], message: str) -> None:
    (models / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    (models / "suffixes.json").write_text(
        '{"version": "1.0", "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",'
        ' "max_input_chars_per_word": 9, "vocab": {"[UNK]": 0}},'
        ' "decoder": {"type": "BPEDecoder", "suffix": "</w>"}}',
        encoding="utf-8",
    )
    with pytest.raises(error, match=message):
        open_tokenizer(spec, models)


def test_module_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, onmt_llm.text.codec, onmt_llm.data.instructions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sentencepiece_model_whose_pieces_are_no_text_is_refused(models: Path, tmp_path: Path) -> None:
    content = bytearray((models / "sp.model").read_bytes())
    content[content.index("▁the".encode()) + 3] = 0xF4  # "the" has become the beginning of a longer character
    (tmp_path / "sp.model").write_bytes(content)
    with pytest.raises(DataError, match="must be a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "sp.model")
    with pytest.raises(DataError, match="must be a SentencePiece model"):
        from_sentencepiece(tmp_path / "sp.model", rows=400)
