"""Tokenisers of GGUF files, with metadata as llama.cpp's converter writes it: the ids of their libraries."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from ten_scripts import lines

from onmt_llm.checkpoint.formats.gguf.tokenizer import read_tokenizer
from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.text.tokenizers.huggingface import HfTokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer

protobuf = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = [*lines(200, seed=2), "a  b   c", "x\n\n\ny", " lead", "tab\tx", "<tool> a<tool>b", "日本語 text 🙂"]
OF_USERS = ["▁▁", "▁▁▁", "\n\n", "\n\n\n", "<tool>"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = range(1, 5)


def metadata(**keys: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def stored(imported: ImportedTokenizer, directory: Path) -> Path:
    (name, content), *_ = imported.blobs.items()
    (directory / name).write_bytes(content)
    return directory / name


def test_pieces_that_users_define(tmp_path: Path) -> None:
    """As in Gemma: runs of spaces and line breaks are pieces; in a GGUF file `▁` in them is a space."""
    file = io.BytesIO()
    settings = {"vocab_size": 900, "hard_vocab_limit": False, "character_coverage": 0.99, "byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(1500, seed=1)),
        model_writer=file,
        **{**settings, "model_type": "bpe", "user_defined_symbols": OF_USERS, "remove_extra_whitespaces": False},
        **{"add_dummy_prefix": False, "normalization_rule_name": "identity", "num_threads": 1, "minloglevel": 2},
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    )
    pieces = protobuf.ModelProto.FromString(file.getvalue()).pieces
    imported = read_tokenizer(
        metadata(
            model="llama",
            tokens=[one.piece.replace("▁", " ") if one.piece in OF_USERS else one.piece for one in pieces],
            scores=[one.score for one in pieces],
            token_type=[one.type for one in pieces],
            bos_token_id=2,
            eos_token_id=1,
            add_space_prefix=False,
        ),
        rows=len(pieces),
    )
    library = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    tokenizer = SentencePieceTokenizer(stored(imported, tmp_path))
    assert imported.tokens == [one.piece for one in pieces]
    assert [tokenizer.encode(text) for text in TEXTS] == [library.encode(text, out_type=str) for text in TEXTS]
    assert "▁▁▁" in tokenizer.encode("a   b") and imported.specials.unk == "<unk>"


def test_byte_level_bpe(tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator(lines(1500, seed=1), trainer)
    theirs.add_special_tokens(["<end>"])
    theirs.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    vocabulary = theirs.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = {"<end>": CONTROL, "<tool>": USER_DEFINED}
    merges = json.loads(theirs.to_str())["model"]["merges"]
    imported = read_tokenizer(
        metadata(
            model="gpt2",
            pre="gpt-2",
            tokens=tokens,
            token_type=[kinds.get(token, NORMAL) for token in tokens],
            merges=[" ".join(pair) for pair in merges],
            eos_token_id=vocabulary["<end>"],
        ),
        rows=len(tokens),
    )
    tokenizer = HfTokenizer(stored(imported, tmp_path))
    assert [tokenizer.encode(text) for text in TEXTS] == [theirs.encode(text).tokens for text in TEXTS]
    assert imported.tokens == tokens and not imported.specials.add_bos


@pytest.mark.parametrize(("kind", "bos", "eos", "pad"), [("llama", "1", "2", None), ("t5", None, "1", "0")])
def test_special_tokens_without_keys(kind: str, bos: str | None, eos: str, pad: str | None) -> None:
    """The defaults of llama.cpp, and the unknown token that the kinds of the tokens say."""
    tokens = [str(number) for number in range(6)]
    found = read_tokenizer(
        metadata(model=kind, tokens=tokens, scores=[0.0] * 6, token_type=[3, 3, 3, NORMAL, UNKNOWN, NORMAL]), rows=6
    ).specials
    assert (found.bos, found.eos, found.pad, found.unk) == (bos, eos, pad, "4")


def test_tokens_that_end_an_answer() -> None:
    """Those with a key, and those of the template."""
    keys = {"eos_token_id": 0, "eot_token_id": 1, "eom_token_id": 0}
    tokens = ["<|end_of_text|>", "<|user|>", "<end_of_turn>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    kinds = [CONTROL] * 3 + [NORMAL] * 256
    known = metadata(model="gpt2", pre="glm4", tokens=tokens, token_type=kinds, merges=[], **keys)
    imported = read_tokenizer(
        {**known, "tokenizer.chat_template": "{{ messages[0]['content'] }}<end_of_turn>"}, rows=len(tokens)
    )
    assert imported.stop_tokens == ["<|user|>", "<end_of_turn>"] and imported.template == "chat_template.jinja"
