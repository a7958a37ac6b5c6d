"""`build_vocab` against the files of OpenNMT-py 3.5.1 (tests/oracle/make_vocab_fixtures.py), and on its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.build_vocab import VocabConfig
from onmt_llm.data.transforms.build import sections
from onmt_llm.data.vocabulary import count as counting
from onmt_llm.data.vocabulary.build import build_vocab
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer

ORACLE = Path(__file__).parents[3] / "data" / "opennmt_vocab"
AGGRESSIVE = {"mode": "aggressive", "joiner_annotate": True}


def build(
    folder: Path,
    *,
    subword: dict[str, Any] | None = None,
    counted: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    corpora: dict[str, Any] | None = None,
    **vocabulary: Any,
) -> dict[str, int]:
    """Run the job on the oracle's corpus; the files go to `folder`."""
    parallel = {"path_src": str(ORACLE / "corpus.src"), "path_tgt": str(ORACLE / "corpus.tgt")}
    files = {"src_vocab": str(folder / "src.vocab")}
    if corpora is None or any("path_tgt" in corpus for corpus in corpora.values()):
        files["tgt_vocab"] = str(folder / "tgt.vocab")
    options = {} if subword is None else {"subword": sections()["subword"].model_validate(subword)}
    data = {"data": corpora or {"c": parallel}, "n_sample": -1, **(data or {}), "transform_options": options}
    job = VocabConfig.model_validate(
        {"corpora": data, "vocabulary": {**files, **vocabulary}, "counting": counted or {}}
    )
    return {path.name: size for path, size in build_vocab(job).items()}


def same(file: Path, oracle: str) -> bool:
    return file.read_bytes() == (ORACLE / oracle).read_bytes()


def test_words_are_counted_as_opennmt_counts_them(tmp_path: Path) -> None:
    assert build(tmp_path) == {"src.vocab": 25, "tgt.vocab": 24}
    assert same(tmp_path / "src.vocab", "words.src.vocab")
    assert same(tmp_path / "tgt.vocab", "words.tgt.vocab")


def test_a_shared_vocabulary_of_the_first_records(tmp_path: Path) -> None:
    build(tmp_path, share_vocab=True, data={"n_sample": 40})
    assert same(tmp_path / "src.vocab", "shared.src.vocab")
    assert not (tmp_path / "tgt.vocab").exists()


def test_bpe_is_learnt_and_counted_as_opennmt_does(tmp_path: Path) -> None:
    pytest.importorskip("pyonmttok")
    model = str(tmp_path / "bpe.codes")
    subword = {"src_subword_model": model, "src_subword_type": "bpe", "src_onmttok_kwargs": AGGRESSIVE}
    learn = {"learn_subwords": True, "learn_subwords_size": 40}
    build(tmp_path, subword=subword, counted=learn, data={"transforms": ["onmt_tokenize"]}, share_vocab=True)
    assert same(tmp_path / "bpe.codes", "bpe.codes")
    assert same(tmp_path / "src.vocab", "bpe.src.vocab")


@pytest.mark.parametrize("processes", [1, 2])
def test_features_are_counted_as_opennmt_counts_them(tmp_path: Path, processes: int) -> None:
    corpora = {"c": {"path_src": str(ORACLE / "tagged.src"), "path_tgt": str(ORACLE / "corpus.tgt")}}
    data = {"n_src_feats": 2, "transforms": ["inferfeats"], "dump_samples": True, "save_data": str(tmp_path)}
    build(tmp_path, corpora=corpora, data=data, counted={"num_threads": processes})
    for number in range(2):
        assert same(tmp_path / f"src.vocab_feat{number}", f"tagged.src.vocab_feat{number}")
    assert same(tmp_path / "src.vocab", "words.src.vocab")


def test_several_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CHUNK", 16)
    build(tmp_path, counted={"num_threads": 3}, data={"transforms": ["filtertoolong"]})
    assert same(tmp_path / "src.vocab", "words.src.vocab")
    assert same(tmp_path / "tgt.vocab", "words.tgt.vocab")


def test_a_mistake_in_another_process_is_told_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\n")
    corpora = {"c": {"path_src": str(tmp_path / "bad.txt")}}
    with pytest.raises(DataError, match=r"bad\.txt"):
        build(tmp_path, corpora=corpora, counted={"num_threads": 2})


def test_sentencepiece_loses_nothing_and_knows_every_byte(tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("ein  Haus mit zwei  Leerzeichen\nＡ full-width letter, ﬁ\n" * 20, encoding="utf-8")
    learn = {"learn_subwords": True, "learn_subwords_size": 284}
    data = {"transforms": ["sentencepiece"], "save_data": str(tmp_path / "run")}
    build(tmp_path, corpora={"c": {"path_src": str(corpus)}}, counted=learn, data=data)
    tokenizer = SentencePieceTokenizer(tmp_path / "run/sentencepiece.model")
    text = "zwei  Ａ ﬁ  日本\n!"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    lines = (tmp_path / "src.vocab").read_text(encoding="utf-8").splitlines()
    counts = dict(line.split("\t") for line in lines)
    assert set(tokenizer.encode(text)) <= set(counts) and counts["<0xE6>"] == "0"
    assert [int(count) for count in counts.values()] == sorted(map(int, counts.values()), reverse=True)


@pytest.mark.parametrize(("size", "bound"), [(8000, "most"), (260, "least")])
def test_a_subword_model_of_a_size_that_the_text_does_not_allow(tmp_path: Path, size: int, bound: str) -> None:
    learn = {"learn_subwords": True, "learn_subwords_size": size}
    with pytest.raises(DataError, match=rf"learn_subwords_size must be at {bound} \d+ for this text, but is {size}"):
        build(
            tmp_path,
            subword={"src_subword_model": str(tmp_path / "sp.model")},
            counted=learn,
            data={"transforms": ["sentencepiece"]},
        )


def test_sizes_and_frequencies_cut_the_files(tmp_path: Path) -> None:
    assert build(tmp_path, src_vocab_size=5, tgt_words_min_frequency=20) == {"src.vocab": 5, "tgt.vocab": 11}
    whole = (ORACLE / "words.src.vocab").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "src.vocab").read_text(encoding="utf-8").splitlines() == whole[:5]


def test_a_language_model_has_one_vocabulary(tmp_path: Path) -> None:
    assert list(build(tmp_path, counted={"model_task": "lm"})) == ["src.vocab"]
    corpus = {"c": {"path_src": str(ORACLE / "corpus.src")}}
    assert build(tmp_path, corpora=corpus, data={"overwrite": True}) == {"src.vocab": 25}
    assert same(tmp_path / "src.vocab", "words.src.vocab")


def test_templates_bring_their_control_tokens(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    chat = {"path_jsonl": str(tmp_path / "chat.jsonl"), "template": "chatml", "messages_key": "messages"}
    build(tmp_path, corpora={"c": chat})
    assert "<|im_start|>\t" in (tmp_path / "src.vocab").read_text()


def test_validation_data_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("unseen\n")
    side = {"path_src": str(ORACLE / "corpus.src"), "path_tgt": str(ORACLE / "corpus.tgt")}
    valid = {"path_src": str(tmp_path / "valid.txt"), "path_tgt": str(tmp_path / "valid.txt")}
    build(tmp_path, corpora={"c": side, "valid": valid})
    assert same(tmp_path / "src.vocab", "words.src.vocab")


def test_samples_show_what_was_counted(tmp_path: Path) -> None:
    data = {"dump_samples": True, "save_data": str(tmp_path / "run"), "n_sample": 3}
    build(tmp_path, data=data)
    source = (ORACLE / "corpus.src").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "run/sample/c.sample.src").read_text(encoding="utf-8").splitlines() == source[:3]


def test_white_space_in_a_token_is_written_by_number(tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("10\u00a0000 x\n" * 2, encoding="utf-8")
    build(tmp_path, corpora={"c": {"path_src": str(corpus)}})
    assert "10｟U+00A0｠000\t2" in (tmp_path / "src.vocab").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tgt_vocab": None}, "src_vocab and tgt_vocab must name two files"),
        ({"src_vocab": None, "tgt_vocab": None, "share_vocab": True}, "src_vocab must name the file"),
        ({"counted": {"learn_subwords": True}}, "must find one of sentencepiece, bpe"),
        (
            {"counted": {"learn_subwords": True}, "data": {"transforms": ["sentencepiece"]}},
            "src_subword_model must name the model to write",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, **changes)


def test_files_are_replaced_only_when_asked(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(ConfigError, match=r"src\.vocab.* would be"):
        build(tmp_path)
    build(tmp_path, data={"overwrite": True})


@pytest.mark.slow
@pytest.mark.skipif("ONMT_PY_PYTHON" not in os.environ, reason="ONMT_PY_PYTHON names the Python of OpenNMT-py 3.5.1")
def test_opennmt_makes_the_fixtures_anew(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "oracle" / "make_vocab_fixtures.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [os.environ["ONMT_PY_PYTHON"], str(script), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    for file in ORACLE.iterdir():
        assert same(tmp_path / file.name, file.name), file.name
