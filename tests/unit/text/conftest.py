"""Tiny models of every tokeniser, trained on the fly, and random Unicode text."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.open import open_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Give three tips for staying healthy, please.",
    "### Instruction:",
    "### Response:",
    "the three things that the dog gives to the fox",
] * 20


def train_sentencepiece(path: Path, **options: Any) -> None:
    import sentencepiece

    model = io.BytesIO()
    settings = {
        "vocab_size": 340,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **settings)
    path.write_bytes(model.getvalue())


def train_byte_level(path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    model.add_tokens([AddedToken("   ", normalized=False), AddedToken("<think>", normalized=False)])
    model.save(str(path))


def train_llama_like(path: Path, *, prepend: bool) -> None:
    """A byte-fallback BPE with `▁`, in the two ways that tokenizer.json files of LLaMA models are written."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    model = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend:
        model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        model.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False))
    content = json.loads(model.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    path.write_text(json.dumps(content), encoding="utf-8")


def train_bpe(path: Path) -> None:
    from subword_nmt.learn_bpe import learn_bpe

    with path.open("w", encoding="utf-8") as codes:
        learn_bpe(CORPUS, codes, 60, min_frequency=2)


def _specs() -> dict[str, TokenizerSpec]:
    joiners = {"mode": "aggressive", "joiner_annotate": True}
    return {
        "sentencepiece": TokenizerSpec(kind="sentencepiece", file="sp.model"),
        "sentencepiece-no-prefix": TokenizerSpec(kind="sentencepiece", file="sp_no_prefix.model"),
        "hf-byte-level": TokenizerSpec(kind="huggingface", file="byte_level.json"),
        "hf-prepend": TokenizerSpec(kind="huggingface", file="prepend.json"),
        "hf-metaspace": TokenizerSpec(kind="huggingface", file="metaspace.json"),
        "onmt-gpt2": TokenizerSpec(kind="onmt_tokenize", options={"mode": "conservative", "gpt2_pretok": True}),
        "onmt-none-sp": TokenizerSpec(
            kind="onmt_tokenize", file="sp.model", options={"mode": "none", "subword_type": "sentencepiece"}
        ),
        "onmt-joiner": TokenizerSpec(kind="onmt_tokenize", options=joiners),
        "onmt-bpe": TokenizerSpec(kind="onmt_tokenize", file="codes.bpe", options={**joiners, "subword_type": "bpe"}),
        "onmt-space-sp": TokenizerSpec(
            kind="onmt_tokenize",
            file="sp_no_prefix.model",
            options={"mode": "space", "joiner_annotate": True, "subword_type": "sentencepiece"},
        ),
        "onmt-case": TokenizerSpec(kind="onmt_tokenize", options={**joiners, "case_markup": True}),
        "onmt-plain": TokenizerSpec(kind="onmt_tokenize", options={"mode": "conservative"}),
        "bpe": TokenizerSpec(kind="bpe", file="codes.bpe"),
        "whitespace": TokenizerSpec(kind="whitespace"),
    }


SPECS = _specs()
# Nothing of a text is lost. Metaspace puts no `▁` before a text that begins with a space, so that space is lost.
LOSSLESS = ["sentencepiece", "sentencepiece-no-prefix", "hf-byte-level", "hf-prepend", "onmt-gpt2", "onmt-none-sp"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models of `SPECS`."""
    directory = tmp_path_factory.mktemp("models")
    train_sentencepiece(directory / "sp.model")
    train_sentencepiece(directory / "sp_no_prefix.model", add_dummy_prefix=False)
    train_sentencepiece(
        directory / "sp_lossy.model",
        vocab_size=70,
        byte_fallback=False,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
    )
    train_byte_level(directory / "byte_level.json")
    train_llama_like(directory / "prepend.json", prepend=True)
    train_llama_like(directory / "metaspace.json", prepend=False)
    train_bpe(directory / "codes.bpe")
    return directory


@pytest.fixture(scope="session")
def tokenizers(models: Path) -> dict[str, Tokenizer]:
    """The tokeniser of each of `SPECS`."""
    return {name: open_tokenizer(spec, models) for name, spec in SPECS.items()}


@pytest.fixture(params=SPECS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """Each tokeniser in turn."""
    return tokenizers[request.param]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> TokenizerSpec:
    """Each of `SPECS` in turn."""
    return SPECS[request.param]


@pytest.fixture(params=LOSSLESS)
def lossless(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """Each tokeniser that loses nothing."""
    return tokenizers[request.param]


@pytest.fixture(scope="session")
def new_sentencepiece() -> Callable[..., None]:
    """Trains a SentencePiece model: path, and options of the trainer."""
    return train_sentencepiece


_ALPHABETS = (
    "abc the dog ",
    " \n\t  \n",
    "éßøü¿¡",
    "你好世界，。",
    "🇫🇷👩‍👩‍👧😀\u200d\ufe0f",
    "שלוםمرحبا",
    "\x00\x01\x7f\x85\u2028\u2029\ufeff\u0301",
    "▁￭｟｠Ġ■％</s>@@",
)
_FRAGMENTS = ("｟newline｠", "</s>", "<0x0A>", "<|im_end|>", "｟mrk_case_modifier_C｠", "｟U+000A｠", "\r\n", "   ")


@pytest.fixture(scope="session")
def random_texts() -> Callable[[int], list[str]]:
    """n texts of all sorts of characters, always the same."""

    def text(rng: random.Random) -> str:
        parts: list[str] = []
        for _ in range(rng.randrange(6)):
            alphabet = rng.choice(_ALPHABETS)
            parts.append("".join(rng.choices(alphabet, k=rng.randrange(6))))
            if rng.random() < 0.2:
                parts.append(rng.choice(_FRAGMENTS))
            if rng.random() < 0.1:
                parts.append(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])))
        return "".join(parts)

    def texts(count: int) -> list[str]:
        rng = random.Random(7)
        return [text(rng) for _ in range(count)]

    return texts
