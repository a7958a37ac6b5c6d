"""Tokenisers of exports in transformers: the ids of a text, and of a conversation, are those that the model was trained
with."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.gguf.write import export_gguf
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.formats.params_json.write import export_meta
from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig, SpecialTokens, TokenizerKind, TokenizerSpec
from onmt_llm.errors import UnsupportedError
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.message import Message
from onmt_llm.text.tokenizers.open import open_tokenizer
from onmt_llm.text.vocab import Vocab
from tests import tiny

CORPUS = [
    *("Give three tips for staying healthy.", "the quick brown fox jumps over the lazy dog, isn't it? 123 45"),
    *("你好 世界 été naïve 😀", "def f(x):\n    return x <|im_start|>"),
] * 20
PARTS = [
    "the",
    " ",
    "  ",
    "dog",
    "é",
    "e\u0301",
    "你好",
    "😀",
    "\n",
    "\t",
    "Give",
    ".",
    "1",
    "<0x0A>",
    "x",
    "▁",
    "ﬁ",
    "Ａ",
]
CHAT = [Message("user", "What is it?"), Message("assistant", " A test."), Message("user", "the\n dog")]
ORACLE = Path(__file__).parents[1] / "oracle" / "llama_cpp.py"
SPECIALS = ("<unk>", "<s>", "</s>")


_RNG = random.Random(11)
TEXTS = ["", " a", "a\n\n b ", *("".join(_RNG.choices(PARTS, k=_RNG.randrange(1, 10))) for _ in range(200))]


def sentencepiece(**options: Any) -> bytes:
    import sentencepiece as library

    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


KEPT = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
"""What keeps all of a text, as in LLaMA's model."""


def byte_level(adds: str = "") -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[*SPECIALS, "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    if adds:
        model.post_processor = processors.TemplateProcessing(adds, special_tokens=[("<s>", 1), ("</s>", 2)])
    return model.to_str().encode()


def word_piece() -> bytes:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    model = Tokenizer(models.WordPiece(unk_token="<unk>"))
    model.normalizer, model.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    model.train_from_iterator(CORPUS, trainers.WordPieceTrainer(special_tokens=[*SPECIALS], show_progress=False))
    return model.to_str().encode()


SP, HF = "sentencepiece", "huggingface"
CASES: dict[str, tuple[TokenizerKind, Callable[[], bytes], dict[str, Any]]] = {
    "sentencepiece's defaults": (SP, sentencepiece, {}),
    "unigram": (SP, lambda: sentencepiece(**KEPT), {}),
    "unigram without prefix": (SP, lambda: sentencepiece(**KEPT, add_dummy_prefix=False), {}),
    "bpe": (SP, lambda: sentencepiece(**KEPT, model_type="bpe"), {"template": "vicuna"}),
    "bpe, chatml": (
        SP,
        lambda: sentencepiece(**KEPT, model_type="bpe", user_defined_symbols=["<|im_start|>", "<|im_end|>"]),
        {"template": "chatml"},
    ),
    "bpe, other ids": (
        SP,
        lambda: sentencepiece(**KEPT, model_type="bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3),
        {"template": "llama2"},
    ),
    "byte-level": (HF, byte_level, {"template": "chatml"}),
    "byte-level with bos and eos": (HF, lambda: byte_level("<s> $A </s>"), {}),
    "word piece": (HF, word_piece, {}),
}


def write(
    folder: Path, name: str, change: Callable[[list[str]], list[str]] = list, attn_bias: bool = False, **settings: Any
) -> Codec:
    """Write a checkpoint of random weights at `folder`/own, with the tokeniser of a case and a changed vocabulary."""
    kind, make, own = CASES[name]
    spec = TokenizerSpec(kind=kind, file={SP: "tokenizer.model", HF: "tokenizer.json"}[kind])
    (folder / str(spec.file)).write_bytes(make())
    vocab = change(open_tokenizer(spec, folder).vocab_tokens() or [])
    model = tiny.llama(vocab_size=len(vocab), attn_bias=attn_bias)
    config = CheckpointConfig(model=model, tokenizer=spec, **{**own, **settings})
    with CheckpointWriter(folder / "own", config) as writer:
        for parameter, value in tiny.build(model).named_parameters():
            writer.add(parameter, value)
        writer.add_file(folder / str(spec.file), str(spec.file))
        Vocab(vocab, config.specials).write(writer.directory / "vocab.txt")
    return Codec.open(folder / "own")


def exported(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(export_hf(folder / "own", folder / "there"))


def assert_same(ours: Codec, theirs: Any, cases: Sequence[str]) -> None:
    for text in cases:
        ids = ours.vocab.ids(ours.encode(text))
        assert theirs(text)["input_ids"] == ids, text
        if ours.vocab.unk_id not in ids:
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ours.vocab.tokens(ids))


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_training(tmp_path: Path, name: str, add_bos: bool) -> None:
    ours = write(tmp_path, name, specials=SpecialTokens(add_bos=add_bos))
    theirs = exported(tmp_path)
    assert_same(ours, theirs, TEXTS)
    if ours.template is not None:
        chat = [{"role": message.role, "content": message.content} for message in CHAT]
        found = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert found == ours.vocab.ids(ours.encode_chat(CHAT))
    again = Codec.open(convert(tmp_path / "there", tmp_path / "again"))
    assert [again.vocab.ids(again.encode(text)) for text in TEXTS] == [ours.vocab.ids(ours.encode(t)) for t in TEXTS]


@pytest.mark.parametrize("name", ["sentencepiece's defaults", "bpe, chatml", "byte-level", "word piece"])
def test_vocabularies_in_another_order_and_with_more_tokens(tmp_path: Path, name: str) -> None:
    def change(tokens: list[str]) -> list[str]:
        return ["<|im_sep|>", *reversed(tokens), "<blank>", "averyunlikelytoken0"]

    ours = write(tmp_path, name, change, stop_tokens=["<|im_sep|>"])
    theirs = exported(tmp_path)
    assert_same(ours, theirs, TEXTS)
    assert theirs.convert_tokens_to_ids(["<|im_sep|>", "<blank>"]) == [0, ours.vocab.id("<blank>")]


@pytest.mark.parametrize("name", ["unigram", "byte-level"])
def test_a_vocabulary_without_some_pieces_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, lambda tokens: tokens[:-3])
    with pytest.raises(UnsupportedError, match="3 are not"):
        export_hf(tmp_path / "own", tmp_path / "there")


def test_metas_format_has_the_ids_of_the_tokenisers_file(tmp_path: Path) -> None:
    write(tmp_path, "bpe", lambda tokens: [*tokens[3:], *tokens[:3]])
    with pytest.raises(UnsupportedError, match="ids of the vocabulary"):
        export_meta(tmp_path / "own", tmp_path / "there")


def test_a_class_that_the_kind_of_model_fixes_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    ours = write(tmp_path, "byte-level", attn_bias=True, source="Hugging Face qwen2, mine")
    export_hf(tmp_path / "own", tmp_path / "there")
    assert "PreTrainedTokenizerFast" in caplog.text
    assert_same(ours, PreTrainedTokenizerFast.from_pretrained(tmp_path / "there"), TEXTS)


LOGGED = {"bpe, chatml": "after <|im_end|>", "byte-level": "", "bpe": "", "sentencepiece's defaults": ""}


@pytest.mark.parametrize("name", LOGGED)
def test_where_llama_cpp_adds_spaces_is_logged(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    write(tmp_path, name, template=CASES[name][2].get("template") if name != "byte-level" else None)
    export_gguf(tmp_path / "own", tmp_path / "model.gguf")
    assert LOGGED[name] in caplog.text and ("llama.cpp puts" in caplog.text) == bool(LOGGED[name])


@pytest.mark.slow
@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("name", ["sentencepiece's defaults", "bpe", "bpe, other ids", "byte-level with bos and eos"])
def test_ids_in_llama_cpp(tmp_path: Path, name: str, add_bos: bool) -> None:
    pytest.importorskip("cyllama", reason="llama.cpp comes with the package cyllama, which is missing")
    ours = write(tmp_path, name, specials=SpecialTokens(add_bos=add_bos))
    file = export_gguf(tmp_path / "own", tmp_path / "model.gguf", type="f32")
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS[1:]))
    subprocess.run([sys.executable, ORACLE, file, tmp_path / "texts.json", tmp_path / "ids.json"], check=True)
    found = json.loads((tmp_path / "ids.json").read_text())
    assert found == [ours.vocab.ids(ours.encode(text)) for text in TEXTS[1:]]
