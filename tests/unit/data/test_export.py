"""export: records and texts that a run would train on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.export import export
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec


def magpie(number: int) -> dict:
    kind = "translation" if number % 4 == 0 else "instruction"
    turns = [{"from": "human", "value": f"a b {number % 7}"}, {"from": "gpt", "value": "c " * (number % 5 + 1)}]
    return {"conversation_id": f"{kind}_{number}", "conversations": turns, "score": number}


@pytest.fixture
def chats(tmp_path: Path) -> str:
    path = tmp_path / "magpie.jsonl"
    path.write_text("".join(json.dumps(magpie(number)) + "\n" for number in range(60)))
    return str(path)


def spec_of(vocab: Vocab, data: DataConfig | None = None, **corpora: CorpusConfig):
    return make_spec(corpora, make_codec("lm", vocab), data)


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_records_of_magpie_that_are_trained(tmp_path: Path, vocab: Vocab, chats: str, form) -> None:
    corpus = CorpusConfig(
        path_jsonl=chats,
        template="alpaca",
        where={"conversation_id": "!translation_*"},
        unique_by=["prompt"],
        transforms=["filtertoolong"],
    )
    _, counts = export(spec_of(vocab, a=corpus), tmp_path / "all", content="record", form=form)["a"]
    corpus = corpus.model_copy(update={"options": {"src_seq_length": max(counts.lengths)}})
    path, counts = export(spec_of(vocab, a=corpus), tmp_path, content="record", form=form)["a"]
    seen, expected = set(), []
    for record in map(magpie, range(60)):
        if record["score"] % 4 and record["score"] % 7 not in seen:
            seen.add(record["score"] % 7)
            expected += [record] if record["score"] % 5 < 3 else []
    found = read(path)
    assert found == expected and 0 < counts.dropped["too_long"] == 7 - len(expected)
    assert (counts.read, counts.kept) == (60, len(found)) and counts.dropped["where"] == 15
    assert counts.read == counts.kept + counts.dropped.total()


def test_basque_questions_of_aya(tmp_path: Path, vocab: Vocab) -> None:
    table = tmp_path / "aya.parquet"
    rows = [
        {
            "inputs": f"galdera {n}",
            "targets": f"erantzuna {n}",
            "language_code": "eus" if n % 3 else "fra",
            "user_id": "x",
        }
        for n in range(9)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    corpus = CorpusConfig(
        path_table=str(table), where={"language_code": "eus"}, prompt_key="inputs", answer_key="targets", sample=4
    )
    path, counts = export(spec_of(vocab, a=corpus), tmp_path, content="text", form="jsonl")["a"]
    wanted = [{"prompt": row["inputs"], "answer": row["targets"]} for row in rows if row["language_code"] == "eus"]
    assert len(read(path)) == 4 and all(item in wanted for item in read(path))
    assert counts.dropped == {"where": 3, "not_sampled": 2}


def test_texts_are_what_the_transforms_before_the_tokeniser_leave(tmp_path: Path, vocab: Vocab, chats: str) -> None:
    text = tmp_path / "a.txt"
    text.write_text("".join(f"[speaker001:] a {number}\n[speaker002:] b.\n\n" for number in range(50)))
    talks = CorpusConfig(path_txt=str(text), transforms=["dialogue", "filtertoolong"], options={"dialogue_variants": 2})
    chat = CorpusConfig(path_jsonl=chats, template="alpaca")
    valid = CorpusConfig(path_txt=str(text), transforms=["dialogue"], options={"dialogue_variants": 2})
    spec = spec_of(vocab, talks=talks, chat=chat, valid=valid)
    one = export(spec, tmp_path / "1", content="text", form="jsonl")
    assert len(read(one["talks"][0])) == 150 and one["talks"][1].made == 100
    assert read(one["valid"][0])[7] == {"text": "[Speaker 1:] a 7\n[Speaker 2:] b."}
    (item, *_) = read(one["chat"][0])
    assert [item["text"][start:end] for start, end in item["trained"]] == ["c "]


@pytest.mark.slow
def test_two_processes_write_the_same(tmp_path: Path, vocab: Vocab, chats: str) -> None:
    spec = spec_of(vocab, chat=CorpusConfig(path_jsonl=chats, template="alpaca", unique_by=["prompt"]))
    one, two = (export(spec, tmp_path / str(n), content="text", form="jsonl", processes=n)["chat"] for n in (1, 2))
    assert one[0].read_bytes() == two[0].read_bytes() and one[1] == two[1]


def test_what_cannot_be_exported(tmp_path: Path, vocab: Vocab, write) -> None:
    with pytest.raises(ConfigError, match="export_as: record"):
        export(spec_of(vocab, a=CorpusConfig(path_src=write("a", "x\n"))), tmp_path, content="record", form="jsonl")
    mixed = write("b", '{"text": "a", "id": 1}\n{"text": "b", "id": "x"}\n')
    with pytest.raises(DataError, match=r"must have the same fields and types"):
        export(spec_of(vocab, b=CorpusConfig(path_jsonl=mixed)), tmp_path, content="record", form="parquet")
    assert not (tmp_path / "b.parquet").exists()
