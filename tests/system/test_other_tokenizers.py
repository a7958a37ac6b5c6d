"""A run trains with the tokeniser, start token and template that its checkpoints store."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.train import main
from onmt_llm.cli.translate import main as translate
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.message import Message
from onmt_llm.training.setup.start import open_start

sentencepiece = pytest.importorskip("sentencepiece")

MODEL = {"decoder_layers": 1, "hidden_size": 16, "heads": 2, "ffn_size": 16}
RUN = {"batch_size": 8, "train_steps": 1, "save_checkpoint_steps": 1, "valid_steps": 100, "device": "cpu", "seed": 1}


def text(seed: int) -> list[str]:
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdef", k=chance.randint(2, 5))) for _ in range(30)]
    return [" ".join(chance.choices(words, k=4)) for _ in range(80)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two SentencePiece models, each as target and as source model; a corpus."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one.model", 1), ("two.model", 2), ("src_two.model", 2), ("vocab.txt", 1)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text(seed)), model_writer=model, vocab_size=40, hard_vocab_limit=False,
            byte_fallback=False, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip
        (tmp_path / name).write_bytes(model.getvalue())
    (tmp_path / "corpus.txt").write_text("\n".join(text(1)) + "\n", encoding="utf-8")
    return tmp_path


def train(name: str, corpus: dict[str, str] | None = None, **options: Any) -> int:
    data = {"c": corpus or {"path_src": "corpus.txt"}}
    content = {"data": data, "transforms": ["sentencepiece"], "save_model": f"{name}/m", **RUN, **options}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return main(["-config", f"{name}.yaml"])


def stored(name: str) -> list[bytes]:
    """The tokenisers of a run's checkpoint: source, target."""
    checkpoint = Checkpoint.open(f"{name}/m_step_1")
    config = checkpoint.config
    specs = (config.src_tokenizer or config.tokenizer, config.tokenizer)
    return [(checkpoint.path / str(spec.file)).read_bytes() for spec in specs]


def test_another_tokeniser_is_refused_unless_the_vocabulary_is_updated(folder: Path, capfd: Any) -> None:
    one, two = ((folder / f"{name}.model").read_bytes() for name in ("one", "two"))
    assert train("base", src_subword_model="one.model", **MODEL) == 0
    assert stored("base") == [one, one]
    (folder / "copy.model").write_bytes(one)  # of the same content: another name is no other tokeniser
    assert train("same", src_subword_model="copy.model", train_from="base/m_step_1") == 0
    for adapter in ({}, {"lora_layers": ["q_proj"]}):
        capfd.readouterr()
        assert train("other", src_subword_model="two.model", train_from="base/m_step_1", **adapter) == 2
        error = capfd.readouterr().err
        assert "two.model has other content" in error and "update_vocab" in error and "Traceback" not in error
    assert train("new", src_subword_model="two.model", train_from="base/m_step_1", update_vocab=True) == 0
    assert stored("new") == [two, two]
    assert {file.name for file in Checkpoint.open("new/m_step_1").files()} == {
        "two.model",
        "vocab.txt",
        "provenance.json",
    }


def test_another_tokeniser_is_kept_where_the_vocabulary_stays(folder: Path) -> None:
    assert train("base", src_subword_model="one.model", **MODEL) == 0
    Checkpoint.open("base/m_step_1").codec().vocab.write(folder / "kept.txt")
    options = {"train_from": "base/m_step_1", "update_vocab": True, "src_vocab": "kept.txt"}
    assert train("new", src_subword_model="two.model", **options) == 0
    assert stored("new")[1] == (folder / "two.model").read_bytes()


@pytest.mark.parametrize("names", [("two.model", "src_two.model"), ("src_two.model", "one.model"), ("vocab.txt",) * 2])
def test_files_of_any_name_stay_apart(folder: Path, names: tuple[str, str]) -> None:
    pairs = {"path_src": "corpus.txt", "path_tgt": "corpus.txt"}
    files = dict(zip(("src_subword_model", "tgt_subword_model"), names, strict=True))
    assert train("base", pairs, **files, **MODEL) == 0
    assert stored("base") == [(folder / name).read_bytes() for name in names]
    assert len(Checkpoint.open("base/m_step_1").codec().encode("ab")) > 0


def test_a_tokenising_transform_without_a_model_needs_its_kind_in_the_checkpoint(folder: Path, capfd: Any) -> None:
    (folder / "words.txt").write_text("\n".join(sorted({word for line in text(1) for word in line.split()})) + "\n")
    assert train("pieces", src_subword_model="one.model", **MODEL) == 0
    assert train("words", transforms=[], src_vocab="words.txt", **MODEL) == 0
    refused = {
        ("pieces", "bpe"): "needs a tokeniser of its kind in the checkpoint, but finds one of kind 'sentencepiece'",
        ("words", "sentencepiece"): "needs a src_subword_model, or a tokeniser in the checkpoint, but has none",
    }
    for (base, transform), sentence in refused.items():
        capfd.readouterr()
        assert train("other", transforms=[transform], train_from=f"{base}/m_step_1", reset_optim="all") == 2
        error = capfd.readouterr().err
        assert sentence in error and "Traceback" not in error
    assert train("same", train_from="pieces/m_step_1", reset_optim="all") == 0
    assert stored("same") == [(folder / "one.model").read_bytes()] * 2


def test_a_tokeniser_replaces_the_splitting_at_spaces_of_a_model_without_one(folder: Path, capfd: Any) -> None:
    (folder / "pieces.txt").write_text(
        "\n".join(sorted({letter for line in text(1) for letter in line} - {" "})) + "\n"
    )
    assert train("words", transforms=[], src_vocab="pieces.txt", **MODEL) == 0
    for name, base in (("new", "words"), ("next", "new")):
        assert train(name, src_subword_model="one.model", train_from=f"{base}/m_step_1", reset_optim="all") == 0
        assert stored(name) == [(folder / "one.model").read_bytes()] * 2
        assert ("words/m_step_1 has no tokeniser" in capfd.readouterr().err) is (base == "words")


def test_answers_with_another_tokeniser_than_the_model_s_are_refused(folder: Path, capfd: Any) -> None:
    assert train("pieces", src_subword_model="one.model", **MODEL) == 0
    assert train("words", transforms=[], src_vocab="corpus.txt", **MODEL) == 0
    (folder / "copy.model").write_bytes((folder / "one.model").read_bytes())

    def answer(base: str, model: str) -> int:
        words = ["-transforms", "sentencepiece", "-src_subword_model", model, "-max_length", "2"]
        return translate(["-model", f"{base}/m_step_1", "-src", "corpus.txt", "-output", "out.txt", *words])

    assert answer("pieces", "copy.model") == 0 and answer("pieces", "absent.model") == 0
    assert "absent.model is not there" in capfd.readouterr().err
    for base, model, part in (
        ("pieces", "two.model", "one.model, but two.model has other content"),
        ("words", "one.model", "splits texts at spaces, but the options name sentencepiece"),
    ):
        assert answer(base, model) == 2
        assert part in capfd.readouterr().err


def test_a_language_model_may_have_no_start_token(folder: Path, capfd: Any) -> None:
    assert train("base", src_subword_model="one.model", **MODEL) == 0
    assert train("none", src_subword_model="one.model", decoder_start_token="", **MODEL) == 0
    assert train("next", train_from="none/m_step_1", reset_optim="all", decoder_start_token="") == 0
    assert train("without", train_from="base/m_step_1", reset_optim="all", decoder_start_token="") == 0
    for name in ("none", "next", "without"):
        assert Checkpoint.open(f"{name}/m_step_1").codec().start_tokens == []
    pairs = {"path_src": "corpus.txt", "path_tgt": "corpus.txt"}
    assert train("pairs", pairs, src_subword_model="one.model", decoder_start_token="", **MODEL) == 2
    assert "decoder_start_token must be a token for an encoder-decoder" in capfd.readouterr().err


def codec_of_run(name: str) -> Codec:
    """The codec that the run trains with."""
    return open_start(load_job("onmt_llm_train", ["-config", f"{name}.yaml"]).job).codec


def test_a_resumed_run_has_the_start_token_and_the_template_of_the_first_run(folder: Path) -> None:
    assert train("base", src_subword_model="one.model", **MODEL) == 0
    base = Checkpoint.open("base/m_step_1").codec()
    start = base.vocab[5]
    (folder / "chat.jsonl").write_text(json.dumps({"prompt": "ab", "answer": "cd"}) + "\n")
    (folder / "layout.jinja").write_text("{% for message in messages %}{{ message.content }};{% endfor %}")
    corpus = {"path_jsonl": "chat.jsonl", "template": "layout.jinja"}
    assert train("run", corpus, train_from="base/m_step_1", reset_optim="all", decoder_start_token=start) == 0
    first = codec_of_run("run")
    assert train("run", corpus, train_from="run/m_step_1", train_steps=2, decoder_start_token=start) == 0
    resumed = codec_of_run("run")
    assert base.bos != start == first.bos
    assert base.config.template is None and first.config.template is not None
    assert first.config == resumed.config and list(first.vocab) == list(resumed.vocab)
    messages = [Message("user", "ab")]
    for codec in (resumed, Checkpoint.open("run/m_step_1").codec(), Checkpoint.open("run/m_step_2").codec()):
        assert codec.bos == start and codec.encode_chat(messages) == first.encode_chat(messages)
