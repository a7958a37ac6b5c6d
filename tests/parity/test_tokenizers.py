"""Tokenisers against the libraries that they replace, and the sample of OpenNMT-py's Vicuna recipe."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.text.placeholders import from_line, to_line
from onmt_llm.text.tokenizers.bpe import BpeTokenizer
from onmt_llm.text.tokenizers.huggingface import HfTokenizer
from onmt_llm.text.tokenizers.pieces import Pieces
from onmt_llm.text.tokenizers.pyonmttok import OnmtTokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer

CORPUS = ["Give three tips for staying healthy.", "the quick brown fox jumps over the lazy dog"] * 20
PIECES = ["the", " ", "  ", "dog", "é", "你好", "😀", "\n", "\t", "Give", ".", "1", "</s>", "<0x0A>", "x"]


def texts() -> list[str]:
    rng = random.Random(11)
    return ["", *("".join(rng.choices(PIECES, k=rng.randrange(1, 9))) for _ in range(300))]


@pytest.fixture(
    scope="module", params=[{}, {"model_type": "bpe"}, {"add_dummy_prefix": False}, {"lossy": True}], ids=str
)
def sp_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    options: dict[str, Any] = dict(request.param)
    if options.pop("lossy", False):
        options |= {"vocab_size": 60, "hard_vocab_limit": False}
    else:
        options |= {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        options |= {"vocab_size": 320, "hard_vocab_limit": False}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, minloglevel=2, **options
    )
    file = tmp_path_factory.mktemp("sp") / "sp.model"
    file.write_bytes(model.getvalue())
    return file


def test_sentencepiece(sp_file: Path) -> None:
    import sentencepiece

    oracle = sentencepiece.SentencePieceProcessor(model_file=str(sp_file))
    ours = SentencePieceTokenizer(sp_file)
    assert ours.encode_batch(texts()) == [oracle.encode(text, out_type=str) for text in texts()]
    rng = random.Random(5)
    # A space as a byte piece comes from no text; at the start SentencePiece keeps it and we take it for the prefix.
    known = [piece for piece in ours.vocab_tokens() if piece not in ("<unk>", "<s>", "</s>", "<0x20>")]
    for _ in range(300):
        tokens = rng.choices(known, k=rng.randrange(8))
        # SentencePiece shows each byte of a broken character, we show the character: as one U+FFFD
        assert ours.decode(tokens).replace("\ufffd", "") == oracle.decode(tokens).replace("\ufffd", "")


def byte_level(tmp_path: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    model.enable_truncation(4)
    model.save(str(tmp_path / "tokenizer.json"))
    model.no_truncation()
    return model


def test_tokenizers_byte_level(tmp_path: Path) -> None:
    oracle, ours = byte_level(tmp_path), HfTokenizer(tmp_path / "tokenizer.json")
    oracle.encode_special_tokens = True
    for text, tokens in zip(texts(), ours.encode_batch(texts()), strict=True):
        encoding = oracle.encode(text, add_special_tokens=False)
        assert tokens == ours.encode(text) == encoding.tokens
        assert ours.decode(tokens) == oracle.decode(encoding.ids, skip_special_tokens=False)
    rng = random.Random(5)
    for _ in range(300):
        tokens = rng.choices(ours.vocab_tokens(), k=rng.randrange(8))
        assert ours.decode(tokens) == oracle.decoder.decode(tokens)


def test_subword_nmt(tmp_path: Path) -> None:
    from subword_nmt.apply_bpe import BPE
    from subword_nmt.learn_bpe import learn_bpe

    with (tmp_path / "codes").open("w", encoding="utf-8") as codes:
        learn_bpe(CORPUS, codes, 40)
    with (tmp_path / "codes").open(encoding="utf-8") as codes:
        oracle = BPE(codes)
    ours = BpeTokenizer(tmp_path / "codes")
    for text in texts():
        plain = text.replace("\n", "")
        assert ours.encode(plain) == [piece for piece in oracle.process_line(plain).split(" ") if piece]
        assert ours.decode(ours.encode(plain)) == " ".join(word for word in plain.split(" ") if word)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "aggressive", "joiner_annotate": True},
        {"mode": "conservative", "joiner_annotate": True, "case_markup": True},
        {"mode": "space", "spacer_annotate": True},
    ],
    ids=str,
)
def test_pyonmttok(options: dict[str, Any]) -> None:
    import pyonmttok

    rest = dict(options)
    oracle, ours = pyonmttok.Tokenizer(rest.pop("mode"), **rest), OnmtTokenizer(None, options)
    for text in texts():
        line = to_line(text.replace("\t", " "))
        tokens = oracle(line, training=False)
        assert ours.encode(text) == tokens
        if "<0x" not in text:
            assert to_line(ours.decode(tokens)) == oracle.detokenize(tokens)


def test_pyonmttok_cuts_byte_characters_where_we_join_them() -> None:
    ours = OnmtTokenizer(None, {"mode": "space", "joiner_annotate": True})
    assert ours.decode(["a", "￭<0x0A>", "￭<0xE2>", "￭<0xA6>", "￭<0x85>", "<0xC3>", "￭<0xA9>"]) == "a\n⦅ é"


def test_whitespace_is_split() -> None:
    for text in texts():
        assert WhitespaceTokenizer().encode(text.replace("\n", " ")) == [
            w for w in text.replace("\n", " ").split(" ") if w
        ]


def test_sample_of_the_vicuna_recipe() -> None:
    """The sample that OpenNMT's tutorial prints, with a real LLaMA-style model.

    Mistral's vocabulary differs from LLaMA's in the heading: `###` is one piece in it, `## #` in the tutorial.
    """
    data = pytest.importorskip("mistral_common").__path__[0]
    tokenizer = SentencePieceTokenizer(Path(data) / "data" / "tokenizer.model.v1")
    line = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "｟newline｠｟newline｠### Instruction:｟newline｠Give three tips for staying healthy.｟newline｠｟newline｠"
        "### Response:｟newline｠1. Eat"
    )
    tokenizer.check_newline()
    tokens = tokenizer.encode(from_line(line))
    sample = " ".join(tokens).replace("###", "## #")
    assert "▁the ▁request . <0x0A> <0x0A> ## # ▁Inst ruction : <0x0A> G ive ▁three ▁tips ▁for" in sample
    assert sample.endswith(". <0x0A> <0x0A> ## # ▁Response : <0x0A> 1 . ▁E at")
    assert to_line(tokenizer.decode(tokens)) == line
    prompt, answer = from_line(line).split("### Response:\n")
    pieces = [*tokenizer.encode(f"{prompt}### Response:\n"), *tokenizer.encode(answer, continuation=True)]
    assert pieces == tokens


@pytest.mark.parametrize("file", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_words_of_real_models_are_encoded_apart(file: str) -> None:
    """LLaMA's and Mistral's 32k pieces, in text that goes to and fro between languages, code and odd white space."""
    mistral_common = pytest.importorskip("mistral_common")
    path = Path(mistral_common.__file__).parent / "data" / file
    ours = SentencePieceTokenizer(path)
    rng = random.Random(13)
    pieces = [piece.replace("▁", " ") for piece in ours.vocab_tokens()[300:]]
    gaps = [
        "",
        "",
        "",
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        " \n",
        "\t",
        "▁",
        "    ",
        "\r\n",
        "[REFERENCE_DOC_0]",
        "é\u0301",
        "😀",
    ]
    texts = ["".join(rng.choice(pieces) + rng.choice(gaps) for _ in range(rng.randrange(1, 40))) for _ in range(1500)]
    for continuation in (False, True):
        found = ours.encode_pieces(texts, continuation=continuation)
        assert sum(isinstance(each, Pieces) for each in found) == len(texts)  # byte fallback: nothing is unknown
        assert [each.tokens() for each in found] == [ours.encode(text, continuation=continuation) for text in texts]
    assert ours._words is not None and sum(each is not None for each in ours._words.encode(texts)) > 1000
