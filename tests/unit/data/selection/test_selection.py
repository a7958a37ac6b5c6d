"""where, unique_by, sample: which records are read, from any position, by any number of processes."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data import ray_chunks
from onmt_llm.data.corpus import open_corpora
from onmt_llm.data.inspection.report import measure
from onmt_llm.data.pack import pack
from onmt_llm.data.readers import IndexCache, check_readers, open_reader
from onmt_llm.data.selection import Where, selected_reader
from onmt_llm.data.selection.duplicates import ExactDuplicates, NearDuplicates
from onmt_llm.data.selection.select import check_selection
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.errors import ConfigError, DataError
from tiny_codecs import make_codec, make_spec


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({"id": "!translation_*"}, "bcd"),
        ({"id": ["chat_*", "translation2"]}, "bc"),
        ({"id": ["*", "!chat_?"]}, "acd"),
        ({"lang": "eu"}, "ab"),
        ({"lang": ["!eu"]}, "cd"),
        ({"score": ">=4"}, "bd"),
        ({"score": [">2", "!>4.5"]}, "abd"),
        ({"good": True}, "a"),
        ({"good": "null"}, "b"),
        ({"tags": "x"}, "ac"),
        ({"tags": "!x"}, "bd"),
        ({"meta.by": "web", "lang": "*"}, "a"),
        ({"turns.0.content": "hi*"}, "c"),
    ],
)
def test_conditions(conditions: dict, kept: str) -> None:
    records = {
        "a": {"id": "translation_1", "lang": "eu", "score": 3, "good": True, "tags": ["x", "y"], "meta": {"by": "web"}},
        "b": {"id": "chat_1", "lang": "eu", "score": "4", "good": None},
        "c": {"id": "translation2", "lang": "fr", "tags": ["x"], "turns": [{"content": "hi you"}]},
        "d": {"id": "x", "score": 4.5},
    }
    where = Where("corpus", CorpusConfig(where=conditions).where)
    assert "".join(name for name, record in records.items() if where(record, name)) == kept


def test_a_missing_field_is_warned_about_once(caplog) -> None:
    where = Where("seldom", {"languag": ["!eu"]})
    assert all(where({"language": "eu"}, f"f:{number}") for number in range(3))
    assert [record.getMessage() for record in caplog.records] == [
        "Corpus 'seldom' has records without the field 'languag' of `where`, which are kept: f:0 ..."
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"where": {"score": ">=good"}}, "must have a number after '>='"),
        ({"where": {"score": []}}, "at least one pattern"),
        ({"unique_threshold": 0.5}, "must have unique_by"),
        ({"sample_seed": 3}, "must have sample"),
    ],
)
def test_options_that_cannot_be_meant(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_selection("a", CorpusConfig(path_jsonl="x", **options))


@pytest.mark.parametrize("partition", [3, 1 << 20])
def test_exact_duplicates_are_all_but_the_first(partition: int) -> None:
    draw = random.Random(1)
    texts = [str(draw.randrange(30)) for _ in range(100)]
    found = ExactDuplicates(partition)
    for text in texts:
        found.add(text)
    assert [text for text, repeated in zip(texts, found.repeated(), strict=True) if not repeated] == list(
        dict.fromkeys(texts)
    )


def test_near_duplicates() -> None:
    draw = random.Random(1)
    words = [[f"w{draw.randrange(500)}" for _ in range(60)] for _ in range(10)]
    found = NearDuplicates(0.7)
    for text in words:
        found.add(" ".join(text))
    for text in words:
        found.add(" ".join(["other", *text[1:]]))
    assert found.repeated().tolist() == [False] * 10 + [True] * 10


def chats(tmp_path: Path, number: int = 300) -> str:
    """Conversations: every fifth is a translation, and each question occurs about three times."""
    draw = random.Random(5)
    path = tmp_path / "chats.jsonl"
    with path.open("w") as file:
        for n in range(number):
            kind = "translation" if n % 5 == 0 else "chat"
            question = f"a b {draw.randrange(number // 3)}"
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"c {n}"}]
            file.write(json.dumps({"conversation_id": f"{kind}_{n}", "conversations": turns}) + "\n")
    return str(path)


def by_hand(path: str, sample: int = 0) -> list[int]:
    """Lines of the records that `SELECTION` selects."""
    seen, lines = set(), []
    for line, text in enumerate(Path(path).read_text().splitlines(), start=1):
        item = json.loads(text)
        question = item["conversations"][0]["content"]
        if not item["conversation_id"].startswith("translation_") and question not in seen:
            seen.add(question)
            lines.append(line)
    if sample:
        lines = sorted(np.random.Generator(np.random.PCG64(7)).choice(lines, sample, replace=False, shuffle=False))
    return lines


SELECTION = {"where": {"conversation_id": "!translation_*"}, "unique_by": ["prompt"]}


def opened(path: str, cache: IndexCache | None = None, **more):
    corpus = CorpusConfig(path_jsonl=path, **{**SELECTION, **more})
    return selected_reader("a", open_reader("a", corpus), corpus, cache or IndexCache())


@pytest.mark.parametrize("more", [{}, {"sample": 20, "sample_seed": 7}])
def test_the_selected_records_are_read_from_any_position(tmp_path: Path, more: dict) -> None:
    path = chats(tmp_path)
    reader = opened(path, **more)
    check_readers([reader])
    records = list(iter(reader.read, None))
    assert [record.line for record in records] == by_hand(path, more.get("sample", 0))
    assert sum(number for record in records for _, number in record.passed) + len(records) == 300
    for taken in (0, 1, len(records) - 1, len(records)):
        first, second = opened(path, **more), opened(path, **more)
        assert len(list(islice(iter(first.read, None), taken // 2))) + first.skip(taken - taken // 2) == taken
        second.seek(first.tell())
        assert list(iter(second.read, None)) == records[taken:]
        second.rewind()
        assert list(iter(second.read, None)) == records
    assert reader.count() == len(records)
    assert [reader.at(number) for number in range(len(records))] == records


def test_a_selection_is_kept_until_files_or_options_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = chats(tmp_path), IndexCache(tmp_path / "cache")
    lines = [record.line for record in iter(opened(path, cache).read, None)]
    monkeypatch.setattr("onmt_llm.data.selection.select._Steps.add", None)
    assert [record.line for record in iter(opened(path, cache).read, None)] == lines
    monkeypatch.undo()
    assert len(list(iter(opened(path, cache, sample=3).read, None))) == 3
    Path(path).write_text(Path(path).read_text().replace("chat_", "translation_", 1))
    assert [record.line for record in iter(opened(path, cache).read, None)] != lines


def test_impossible_selections(tmp_path: Path) -> None:
    path = chats(tmp_path)
    with pytest.raises(DataError, match=r"must have at least 500 records \(sample\), but has"):
        opened(path, sample=500).check()
    with pytest.raises(DataError, match="at least one selected record, but of 300 `where` drops 300"):
        opened(path, where={"conversation_id": "none"}).check()


def corpus_of(path: str, **more) -> CorpusConfig:
    return CorpusConfig(path_jsonl=path, template="alpaca", **{**SELECTION, **more})


@pytest.mark.parametrize("more", [{}, {"sample": 20}, {"unique_by": []}, {"shuffle": "global"}])
def test_a_pipeline_counts_what_is_not_selected_and_resumes_exactly(tmp_path: Path, make_pipeline, more: dict) -> None:
    corpora = {"a": corpus_of(chats(tmp_path), **more)}
    settings = {"data": {"epochs": 2}, "batching": {"bucket_size": 16, "batch_size": 4}}
    pipeline = make_pipeline(corpora, **settings)
    states, batches = [], []
    for batch in pipeline:
        batches.append(batch.tgt_BT.tolist())
        states.append(json.dumps(pipeline.state_dict()))
    counts = pipeline.counts["a"]
    kept = 2 * {"sample": 20, "unique_by": 240}.get(next(iter(more), ""), len(by_hand(corpora["a"].path_jsonl)))
    assert (counts.read, counts.kept) == (600, kept)
    assert counts.read == counts.kept + sum(counts.dropped.values()) and counts.dropped["where"] == 120
    for start in (3, len(states) // 2):
        again = make_pipeline(corpora, **settings)
        again.load_state_dict(json.loads(states[start]))
        assert [batch.tgt_BT.tolist() for batch in again] == batches[start + 1 :]


def test_reports_and_packs_count_the_same(tmp_path: Path, vocab) -> None:
    corpora = {"a": corpus_of(chats(tmp_path), sample=30)}
    spec = make_spec(corpora, make_codec("lm", vocab))
    (report,) = measure(spec)
    assert report.counts.read == 300 and report.counts.kept == 30
    assert report.counts.dropped["where"] == 60 and set(report.counts.dropped) == {"where", "duplicate", "not_sampled"}
    folder = pack(spec, tmp_path / "packs")["a"]
    packed = make_spec(
        {"a": corpora["a"].model_copy(update={"path_packed": str(folder.parent)})}, make_codec("lm", vocab)
    )
    (again,) = measure(packed)
    assert again.counts == report.counts


def in_tasks(spec: PipelineSpec, work: Any) -> Iterator[Any]:
    """The results of the tasks that a cluster is given, one after the other."""
    for part in ray_chunks.file_parts(spec, open_corpora(spec)):
        for result in ray_chunks.work_on((spec, work, 8, Path.cwd()), part):
            yield part.corpus, result


@pytest.mark.parametrize("more", [{}, {"sample": 20}, {"unique_by": [], "where": {}, "sample": 250}])
def test_tasks_of_a_cluster_read_what_one_process_selects(
    tmp_path: Path, vocab, more: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_chunks, "_PART_ROWS", 16)
    lines = Path(chats(tmp_path)).read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    for number, first in enumerate(range(0, 300, 100)):
        own = slice(first, first + 100)
        (tmp_path / f"a{number}.jsonl").write_text("".join(lines[own]))
        parquet.write_table(pyarrow.Table.from_pylist(rows[own]), tmp_path / f"a{number}.parquet", row_group_size=30)
    with gzip.open(tmp_path / "a1.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a1.jsonl").read_text())
    (tmp_path / "a1.jsonl").unlink()
    options = {"template": "alpaca", **SELECTION, **more}
    spec = make_spec(
        {
            "lines": CorpusConfig(path_jsonl=str(tmp_path / "a?.jsonl*"), **options),
            "rows": CorpusConfig(path_table=str(tmp_path / "a?.parquet"), **options),
        },
        make_codec("lm", vocab),
    )
    for name, folder in pack(spec, tmp_path / "wanted").items():
        found = pack(spec, tmp_path / "found", run=in_tasks)[name]
        assert {file.name: file.read_bytes() for file in found.iterdir()} == {
            file.name: file.read_bytes() for file in folder.iterdir()
        }


def test_conditions_on_lines_and_rows(tmp_path: Path) -> None:
    src, tgt, table = tmp_path / "a.src", tmp_path / "a.tgt", tmp_path / "a.csv"
    src.write_text("one\ntwo\none\n")
    tgt.write_text("x\ny\nz\n")
    table.write_text("prompt,answer\none,x\ntwo,y\none,z\n")
    for corpus in (
        CorpusConfig(path_src=str(src), path_tgt=str(tgt), unique_by=["src"], where={"tgt": "!y"}),
        CorpusConfig(path_table=str(table), unique_by=["prompt"], where={"answer": "!y"}),
    ):
        reader = selected_reader("a", open_reader("a", corpus), corpus, IndexCache())
        found = [record.parts[0].decode().split(",")[0] for record in iter(reader.read, None)]
        assert found == ["one"]
