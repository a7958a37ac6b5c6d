"""detokenise(tokenise(x)) == x for every tokeniser that promises it, on any Unicode text."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from onmt_llm.text.decoding import byte_alphabet, decode_all
from onmt_llm.text.placeholders import from_line, to_line
from onmt_llm.text.segment import Segment, tokenize_segments
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.bpe import BpeTokenizer
from onmt_llm.text.tokenizers.control_guard import ControlGuard
from onmt_llm.text.tokenizers.huggingface import HfTokenizer
from onmt_llm.text.tokenizers.pyonmttok import OnmtTokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer

QUICK = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
CONTROL = frozenset({"<s>", "</s>", "<|im_end|>", "｟fuzzy｠"})

# what breaks tokenisers, more often than chance would have it
ODD = st.sampled_from(
    [
        *"\n\t\r\x00\u00a0\u2028\u3000\ufeff▁￭￨ĠĊ｟｠：\U0010ffff😀",
        *("@@", "e\u0301", "👩\u200d👧", "｟newline｠", "｟_mask_before_｠", "｟U+000A｠", "｟U+｠", "｟ent_1｠"),
        *("｟mrk_case_modifier_C｠", "</s>", "<s>", "<unk>", "<0x0A>", "<|im_end|>", "｟fuzzy｠", "the", "cat"),
    ]
)
TEXTS = st.lists(st.one_of(ODD, st.just(" "), st.just("\n"), st.text(max_size=4)), max_size=12).map("".join)
"""Any Unicode text without lone surrogates, which UTF-8 does not have."""
PARTS = st.lists(TEXTS, min_size=1, max_size=4)


def sp_tokenizer(folder: Path, **options: object) -> SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "name three tips", "eat well and sleep </s>"] * 20),
        model_writer=model,
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    file = folder / "sp.model"
    file.write_bytes(model.getvalue())
    return SentencePieceTokenizer(file)


def hf_byte_level(folder: Path, *, prefix: bool) -> HfTokenizer:
    vocab = {piece: number for number, piece in enumerate([*byte_alphabet().values(), "th", "the", "</s>"])}
    special = {"id": vocab["</s>"], "content": "</s>", "special": True, "normalized": False}
    content = {
        "added_tokens": [{**special, "single_word": False, "lstrip": False, "rstrip": False}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": prefix, "use_regex": True, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "h"], ["th", "e"]]},
    }
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content))
    return HfTokenizer(file)


def bpe_tokenizer(folder: Path) -> BpeTokenizer:
    file = folder / "codes"
    file.write_text("#version: 0.2\nt h\nth e</w>\nc a\nca t</w>\n")
    return BpeTokenizer(file)


def onmt_gpt2(folder: Path) -> OnmtTokenizer:
    file = folder / "gpt2.codes"
    file.write_text("#version: 0.2\nt h\nth e\n", encoding="utf-8")
    options = {"mode": "space", "subword_type": "bpe", "gpt2_pretok": True}
    return OnmtTokenizer(file, options)


LOSSLESS: dict[str, Callable[[Path], Tokenizer]] = {
    "sentencepiece": sp_tokenizer,
    "sentencepiece bpe without prefix": lambda folder: sp_tokenizer(
        folder, model_type="bpe", add_dummy_prefix=False, user_defined_symbols=["</s>x", "｟fuzzy｠"]
    ),
    "byte-level": lambda folder: hf_byte_level(folder, prefix=False),
    "byte-level with prefix": lambda folder: hf_byte_level(folder, prefix=True),
}


SPACE = re.compile("[\t\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
EATS_A_SPACE = {"byte-level with prefix"}
"""`tokenizers` puts its prefix space only before a text that has none: `a` and ` a` are the same to these models."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    cache: dict[str, Tokenizer] = {}

    def open_(name: str) -> Tokenizer:
        if name not in cache:
            cache[name] = LOSSLESS[name](tmp_path_factory.mktemp("model"))
        return cache[name]

    return open_


@pytest.mark.parametrize("name", LOSSLESS)
class TestLossless:
    @QUICK
    @given(text=TEXTS)
    def test_any_text_comes_back(self, opened, name, text):
        tokenizer = opened(name)
        expected = text.replace("▁", " ") if name.startswith("sentencepiece") else text
        assume(not (name in EATS_A_SPACE and text.startswith(" ")))
        pieces = tokenizer.encode(text)
        assert tokenizer.decode(pieces) == expected
        assert decode_all(tokenizer.stream_decoder(), pieces) == expected
        assert tokenizer.encode_batch([text])[0] == pieces

    @QUICK
    @given(parts=PARTS)
    def test_the_parts_of_a_text_are_the_text(self, opened, name, parts):
        """Segments are encoded one by one, so that no text runs into a control token, and lose nothing by it."""
        tokenizer = ControlGuard(opened(name), CONTROL)
        encoded = tokenize_segments(tokenizer, [Segment(part) for part in parts])
        text = "".join(parts)
        assume(not (name in EATS_A_SPACE and text.startswith(" ")))
        expected = text.replace("▁", " ") if name.startswith("sentencepiece") else text
        assert tokenizer.decode([piece for part in encoded for piece in part]) == expected

    @QUICK
    @given(text=TEXTS)
    def test_no_text_is_a_control_token(self, opened, name, text):
        tokenizer = ControlGuard(opened(name), CONTROL)
        for continuation in (False, True):
            assert tokenizer.control_tokens.isdisjoint(tokenizer.encode(text, continuation=continuation))
        assert tokenizer.control_tokens.isdisjoint(tokenizer.encode_batch([text])[0])


def with_single_spaces(text: str) -> str:
    """What tokenisers of words keep of white space: one space between words, none at the ends of a line."""
    return "\n".join(" ".join(word for word in line.split(" ") if word) for line in text.split("\n"))


class TestWords:
    """Words lose only the number of spaces between them."""

    @QUICK
    @given(text=TEXTS)
    def test_whitespace(self, text):
        tokenizer = WhitespaceTokenizer()
        assert tokenizer.decode(tokenizer.encode(text)) == with_single_spaces(text.replace("\r\n", "\n"))

    @QUICK
    @given(text=TEXTS)
    def test_bpe(self, tmp_path_factory, text):
        tokenizer = bpe_tokenizer(tmp_path_factory.getbasetemp())
        assert tokenizer.decode(tokenizer.encode(text)) == with_single_spaces(text.replace("\r\n", "\n"))

    @QUICK
    @given(text=TEXTS)
    def test_no_text_is_a_control_token(self, text):
        tokenizer = ControlGuard(WhitespaceTokenizer(), CONTROL)
        assert tokenizer.control_tokens.isdisjoint(tokenizer.encode(text))


class TestPyonmttok:
    @pytest.fixture(scope="class")
    def models(self, tmp_path_factory):
        pytest.importorskip("pyonmttok")
        return {
            "gpt2": onmt_gpt2(tmp_path_factory.mktemp("gpt2")),
            "joiner": OnmtTokenizer(None, {"mode": "aggressive", "joiner_annotate": True}),
            "conservative": OnmtTokenizer(None, {"mode": "conservative", "joiner_annotate": True}),
            "spacer": OnmtTokenizer(None, {"mode": "aggressive", "spacer_annotate": True}),
        }

    @QUICK
    @given(text=TEXTS)
    def test_bytes(self, models, text):
        assert models["gpt2"].decode(models["gpt2"].encode(text)) == text

    @pytest.mark.parametrize("mode", ["joiner", "conservative", "spacer"])
    @QUICK
    @given(text=TEXTS)
    def test_annotated_words(self, models, mode, text):
        """The library takes white space of any kind for a space, and some full-width signs for their narrow kin."""
        decoded = models[mode].decode(models[mode].encode(text))
        expected = SPACE.sub(" ", text.replace("\r\n", "\n")).translate(str.maketrans("％＃：", "%#:"))
        assert with_single_spaces(decoded) == with_single_spaces(expected)


@QUICK
@given(text=TEXTS)
def test_lines(text):
    """A text as a corpus line, and back: every sign, and nothing taken for a marker that is none."""
    line = to_line(text)
    assert "\n" not in line and from_line(line) == text.replace("\r\n", "\n")
