"""Byte-level BPE files against the libraries that they are made for: ids and text of lines in ten scripts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ten_scripts
import tokenizers

from onmt_llm.checkpoint.formats import byte_level_bpe as formats
from onmt_llm.checkpoint.formats.tokenizer_files import from_huggingface
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.text.decoding import byte_level_bytes
from onmt_llm.text.tokenizers.huggingface import HfTokenizer

LINES = ten_scripts.lines(1000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ten_scripts.lines(600, seed=1), trainer)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def ranks(trained: Path) -> dict[bytes, int]:
    """A tiktoken vocabulary: all bytes, then the trained pieces in the order of their merges."""
    pieces = json.loads((trained / "vocab.json").read_text("utf-8"))
    longer = [byte_level_bytes(piece) for piece in sorted(pieces, key=pieces.get) if len(piece) > 1]
    tokens = [*(bytes([byte]) for byte in range(256)), *(piece for piece in longer if not piece.startswith(b"<"))]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def our_ids(content: bytes, folder: Path) -> tuple[HfTokenizer, Callable[[str], list[int]]]:
    (folder / "tokenizer.json").write_bytes(content)
    tokenizer = HfTokenizer(folder / "tokenizer.json")
    number = {token: i for i, token in enumerate(tokenizer.vocab_tokens())}
    return tokenizer, lambda text: [number[piece] for piece in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("name", "prefix_space"),
    [
        ("GPT2Tokenizer", False),
        ("GPT2Tokenizer", True),
        ("Qwen2TokenizerFast", False),
        ("RobertaTokenizer", True),
        ("CodeGenTokenizer", False),
    ],
)
def test_vocab_and_merges_as_in_transformers(name: str, prefix_space: bool, trained: Path, tmp_path: Path) -> None:
    import transformers

    stated = {"tokenizer_class": name, "add_prefix_space": prefix_space, "eos_token": "</s>"}
    options: dict[str, Any] = {key: value for key, value in stated.items() if key != "tokenizer_class"}
    theirs = getattr(transformers, name)(str(trained / "vocab.json"), str(trained / "merges.txt"), **options)
    content = formats.from_vocab_and_merges(trained / "vocab.json", stated, model_type=None)
    ours, ids = our_ids(content, tmp_path)
    assert [ids(line) for line in LINES] == [theirs(line, add_special_tokens=False).input_ids for line in LINES]
    normaliser = theirs.backend_tokenizer.normalizer
    for line in filter(None, LINES):
        assert ours.decode(ours.encode(line)) == (normaliser.normalize_str(line) if normaliser else line)


def test_added_tokens_follow_the_vocabulary(trained: Path, tmp_path: Path) -> None:
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())
    size = len(json.loads((trained / "vocab.json").read_text("utf-8")))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1, "<|im_start|>": size}))
    tokenizer, _ = our_ids(formats.from_vocab_and_merges(tmp_path / "vocab.json", {}, model_type="qwen2"), tmp_path)
    assert tokenizer.vocab_tokens()[size:] == ["<|im_start|>", "<|im_end|>"]
    assert {"<|im_start|>", "<|im_end|>"} <= tokenizer.control_tokens


def test_llama3_as_in_tiktoken(ranks: dict[bytes, int], tmp_path: Path) -> None:
    import tiktoken

    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))
    assert formats.is_tiktoken(file)
    theirs = tiktoken.Encoding("t", pat_str=formats.LLAMA3.patterns[0], mergeable_ranks=ranks, special_tokens={})
    ours, ids = our_ids(formats.from_tiktoken(file), tmp_path)
    for line in LINES:
        assert ids(line) == theirs.encode_ordinary(line)
        assert ours.decode(ours.encode(line)) == line
    controls = ours.vocab_tokens()[len(ranks) :]
    assert len(controls) == 256
    assert controls[:11:9] == ["<|begin_of_text|>", "<|eot_id|>"]


@pytest.mark.parametrize("version", ["v3", "v11"])
def test_tekken_as_in_mistral_common(version: str, ranks: dict[bytes, int], tmp_path: Path) -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
    content: dict[str, Any] = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "num_vocab_tokens": len(ranks),
            "default_vocab_size": len(ranks) + 20,
            "default_num_special_tokens": 30,
            "version": version,
        },
        "vocab": [
            {
                "rank": rank,
                "token_bytes": base64.b64encode(token).decode(),
                "token_str": token.decode("utf-8", "ignore"),
            }
            for token, rank in ranks.items()
        ],
    }
    if version == "v11":
        content["special_tokens"] = [
            {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
        ]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    theirs = Tekkenizer.from_file(tmp_path / "tekken.json")
    ours, ids = our_ids(formats.from_tekken(tmp_path / "tekken.json"), tmp_path)
    assert ours.vocab_tokens()[:30] == [theirs.id_to_piece(i) for i in range(30)]
    assert len(ours.vocab_tokens()) == theirs.n_words
    for line in LINES:
        assert ids(line) == theirs.encode(line, bos=False, eos=False)
        assert ours.decode(ours.encode(line)) == line


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab.json": "{}", "merges.txt": "a b c\n"}, "two pieces"),
        ({"vocab.json": "{}"}, "merges.txt"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, "join pieces"),
        ({"vocab.json": '{"a": 1}', "merges.txt": ""}, "ids 0, 1"),
        ({"vocab.json": "[1]", "merges.txt": ""}, "a list"),
        ({"vocab.json": "{", "merges.txt": ""}, "cannot be read"),
    ],
)
def test_damaged_files_get_one_sentence(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        formats.from_vocab_and_merges(tmp_path / "vocab.json", {}, model_type="gpt2")


def test_an_unknown_way_to_split_text_is_refused(trained: Path) -> None:
    for stated, model_type in (({"tokenizer_class": "XTokenizer"}, "gpt2"), ({}, "new"), ({}, None)):
        with pytest.raises(UnsupportedError, match="known way"):
            formats.from_vocab_and_merges(trained / "vocab.json", stated, model_type=model_type)


def test_other_damage(tmp_path: Path) -> None:
    for content in ("{}", '{"config": {}, "vocab": []}', "[]"):
        (tmp_path / "tekken.json").write_text(content)
        with pytest.raises(DataError, match=r"tekken\.json"):
            formats.from_tekken(tmp_path / "tekken.json")
    (tmp_path / "tokenizer.model").write_text("YQ== 0\nYg== 2\n")
    with pytest.raises(DataError, match="rank"):
        formats.from_tiktoken(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("model_type", "stated", "added"),
    [
        ("gpt2", {}, ([], [])),
        ("opt", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>"}, (["</s>"], [])),
        ("bart", {}, (["<s>"], ["</s>"])),
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}, ([], [])),
    ],
)
def test_a_folder_of_files_is_read(
    model_type: str, stated: dict[str, Any], added: tuple[list[str], list[str]], trained: Path, tmp_path: Path
) -> None:
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())
    ids = {"bos_token_id": 0, "eos_token_id": 2, "is_encoder_decoder": model_type == "bart"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **ids}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    imported = from_huggingface(tmp_path, rows=len(json.loads((trained / "vocab.json").read_text("utf-8"))))
    tokenizer = tokenizers.Tokenizer.from_buffer(imported.blobs["tokenizer.json"])
    text = LINES[1]
    assert (
        tokenizer.encode(text).tokens == added[0] + tokenizer.encode(text, add_special_tokens=False).tokens + added[1]
    )
    assert imported.specials.add_bos == (model_type in ("opt", "bart"))
    if model_type == "bart":
        assert (imported.sequences.src_prefix, imported.sequences.src_suffix) == added


def test_files_are_recognised_by_their_content(ranks: dict[bytes, int], tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))
    imported = from_huggingface(tmp_path, rows=len(ranks) + 256)
    assert imported.specials.bos == "<|begin_of_text|>" and imported.specials.add_bos
    assert imported.tokens[len(ranks)] == "<|begin_of_text|>"
