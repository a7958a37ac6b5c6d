"""The text side of written GGUF files: they are read again as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from parity.test_converters_gguf import write_gguf as write_llama
from parity.test_converters_hf import save_model
from parity.test_families import ENDS, MODELS

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.byte_level_bpe import GPT2, Splitting, byte_level_bpe
from onmt_llm.checkpoint.formats.gguf.pre_tokenizer import pre_tokenizer_name
from onmt_llm.checkpoint.formats.gguf.splitting import SPLITTINGS
from onmt_llm.checkpoint.formats.gguf.write import export_gguf
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.releasing import gguf as releasing
from onmt_llm.releasing import release

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "seven", "wizards", "brew", "tea")
LINES = [
    " ".join(WORDS[(i * k + k) % len(WORDS)] + ("ing"[: i % 4]) for i in range(3 + k % 9))
    + ["", "!", "  é 漢\t🙂"][k % 3]
    for k in range(200)
]


def fields(file: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("name", [name for name in SPLITTINGS if name != "default"])
def test_pre_tokenisers_are_recognised_by_what_they_do(name: str) -> None:
    content = json.loads(byte_level_bpe([], [], SPLITTINGS[name], {}))
    found = SPLITTINGS[pre_tokenizer_name(content, Path("tokenizer.json"))]
    assert (found.patterns, found.digits, found.whole_words) == (
        *(SPLITTINGS[name].patterns, SPLITTINGS[name].digits),
        SPLITTINGS[name].whole_words,
    )


@pytest.mark.parametrize("splitting", [Splitting(("[a-m]+",)), Splitting(prefix_space=True)])
def test_other_pre_tokenisers_are_refused(splitting: Splitting) -> None:
    content = json.loads(byte_level_bpe([], [], splitting, {}))
    with pytest.raises(UnsupportedError, match=r"splits it in another way"):
        pre_tokenizer_name(content, Path("tokenizer.json"))


def train(directory: Path, **options: Any) -> None:
    """A SentencePiece BPE like Llama 2's, of 300 pieces."""
    directory.mkdir(exist_ok=True)
    settings = {
        **{"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
        **{"remove_extra_whitespaces": False, "hard_vocab_limit": False, "vocab_size": 300, "minloglevel": 2},
    }
    with (directory / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES), model_writer=model, **{**settings, **options}
        )


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A tiny Llama of transformers whose tokeniser is a tokenizer.model."""
    save_model(tmp_path / "hf", "llama", {**MODELS["llama"][1], **ENDS})
    (tmp_path / "hf" / "tokenizer.json").unlink()
    (tmp_path / "hf" / "tokenizer_config.json").unlink()
    train(tmp_path / "hf")
    return tmp_path / "hf"


def ids(model: Path) -> Iterator[list[int]]:
    codec = Checkpoint.open(model).codec()
    return (codec.vocab.ids(codec.encode(line)) for line in LINES)


def test_sentencepiece_tokens_are_the_same_again(tmp_path: Path, hf: Path) -> None:
    ours = convert(hf, tmp_path / "ours")
    file = export_gguf(ours, tmp_path / "out.gguf")
    expected = list(ids(ours))
    assert list(ids(convert(file, tmp_path / "again"))) == expected
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert [theirs(line)["input_ids"] for line in LINES] == expected
    found = fields(file)
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.add_bos_token"]
    assert [found[f"tokenizer.ggml.{role}_token_id"] for role in ("unknown", "bos", "eos")] == [0, 1, 2]
    assert set(found["tokenizer.ggml.token_type"]) == {1, 2, 3, 6}


def test_unigram_tokens_are_the_same_again(tmp_path: Path, hf: Path) -> None:
    train(hf, model_type="unigram", byte_fallback=False, normalization_rule_name="nmt_nfkc", vocab_size=80)
    ours = convert(hf, tmp_path / "ours")
    again = convert(export_gguf(ours, tmp_path / "out.gguf"), tmp_path / "again")
    assert list(ids(again)) == list(ids(ours))


def test_a_tokenizer_json_with_merges_becomes_one_with_scores(tmp_path: Path, hf: Path) -> None:
    expected = list(ids(convert(hf, tmp_path / "from_pieces")))
    transformers.LlamaTokenizer.from_pretrained(hf, add_bos_token=True).save_pretrained(hf)
    assert (hf / "tokenizer.json").is_file()
    ours = convert(hf, tmp_path / "ours")
    assert Checkpoint.open(ours).config.tokenizer.kind == "huggingface"
    again = convert(export_gguf(ours, tmp_path / "out.gguf"), tmp_path / "again")
    assert list(ids(again)) == list(ids(ours)) == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model_type": "unigram"}, "must have no byte_fallback"),
        ({"model_type": "char", "byte_fallback": False, "vocab_size": 100}, "must be a BPE or a Unigram model"),
        ({"byte_fallback": False, "vocab_size": 100}, "must have a piece for each byte"),
    ],
)
def test_other_sentencepiece_models_are_refused(
    tmp_path: Path, hf: Path, options: dict[str, Any], sentence: str
) -> None:
    train(hf, **options)
    with pytest.raises(UnsupportedError, match=sentence):
        export_gguf(convert(hf, tmp_path / "ours"), tmp_path / "out.gguf")


def test_a_text_ends_where_it_ended(tmp_path: Path) -> None:
    write_llama(tmp_path / "theirs.gguf", "F32")
    ours = convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    file = export_gguf(ours, tmp_path / "out.gguf")
    found = fields(file)
    assert [found[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "eot")] == [1, 0, 2]
    assert found["tokenizer.ggml.pre"] == "smollm" and "<|im_end|>" in found["tokenizer.chat_template"]
    first, again = (Checkpoint.open(one) for one in (ours, convert(file, tmp_path / "again")))
    assert first.codec().stop_tokens == again.codec().stop_tokens == ["<|endoftext|>", "<|im_end|>"]
    assert first.config.specials == again.config.specials


def test_a_model_without_a_tokeniser_is_refused(tmp_path: Path, hf: Path) -> None:
    ours = convert(hf, tmp_path / "ours", tokenizer_model="none")
    with pytest.raises(UnsupportedError, match="of kind 'none'"):
        export_gguf(ours, tmp_path / "out.gguf")


@pytest.mark.parametrize("type", releasing.BOUNDS)
def test_releases_are_compared_with_the_model(tmp_path: Path, type: str) -> None:
    write_llama(tmp_path / "theirs.gguf", "F32")
    ours = convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    report = release(ours, tmp_path / "out", format="gguf", quantization=type, text=" ".join(LINES[:9]))
    assert report["verdict"] == "pass" and report["figures"]["n_tokens"] > 100
    assert report["figures"]["max_abs_dlogit"] > 0 or type == "f32"
    names = {"out.gguf", "Modelfile", "config.yaml", "release_report.json", "manifest.json", "README.md"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert "ollama create out" in (tmp_path / "out" / "README.md").read_text()


def test_strict_publishes_nothing_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llama(tmp_path / "theirs.gguf", "F32")
    ours = convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    quantize = gguf.quantize
    monkeypatch.setattr(gguf, "quantize", lambda values, kind: quantize(values * 1.1, kind))
    with pytest.raises(CheckpointError, match=r"max_abs_dlogit is .* Nothing was published"):
        release(ours, tmp_path / "out", format="gguf", quantization="f32", text=" ".join(LINES[:9]))
    assert not (tmp_path / "out").exists()


def test_gpt2_splitting_is_not_the_default_of_llama_cpp() -> None:
    content = json.loads(byte_level_bpe([], [], GPT2, {}))
    assert pre_tokenizer_name(content, Path("tokenizer.json")) == "gpt-2"
