"""Folders of Hugging Face datasets, and registered readers."""

from __future__ import annotations

import json
import sqlite3
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import READERS, check_readers, open_reader
from onmt_llm.errors import ConfigError, DataError

ROWS = [{"text": f"row {number}"} for number in range(10)]


def stream(path: Path, rows: list[dict]) -> None:
    """An Arrow file as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def saved(folder: Path) -> None:
    """As `Dataset.save_to_disk` writes it."""
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for number, name in enumerate(names):
        stream(folder / name, ROWS[5 * number : 5 * number + 5])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def saved_splits(folder: Path) -> None:
    saved(folder / "train")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))


def cached(folder: Path) -> None:
    """As `load_dataset` keeps it."""
    inner = folder / "default" / "0.0.0" / "abc"
    stream(inner / "chats-train-00000-of-00002.arrow", ROWS[:5])
    stream(inner / "chats-train-00001-of-00002.arrow", ROWS[5:])
    stream(inner / "chats-test.arrow", ROWS[:1])
    stream(inner / "cache-train-1f.arrow", ROWS[:1])


def downloaded(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "data" / "train-00000-of-00001.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), folder / "data" / "test-00000-of-00001.parquet")


@pytest.mark.parametrize("make", [saved, saved_splits, cached, downloaded])
def test_a_folder_is_a_corpus(tmp_path: Path, make) -> None:
    make(tmp_path / "chats")
    corpus = CorpusConfig(path_table=str(tmp_path / "chats"))
    reader = open_reader("a", corpus)
    check_readers([reader])
    assert [json.loads(record.parts[0]) for record in iter(reader.read, None)] == ROWS
    if make is not saved:
        other = corpus.model_copy(update={"dataset_split": "validation"})
        with pytest.raises(DataError, match="split 'validation', but holds the splits train"):
            open_reader("a", other)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READERS, "_items", {})
    READERS.register("words")(lambda path: [{"text": word} for word in path.read_text().split()])
    READERS.register("broken")(lambda path: [{"text": path}])


def test_a_registered_reader(tmp_path: Path, plugin: None) -> None:
    (tmp_path / "a.words").write_text("one two three four")
    corpus = CorpusConfig(path_table=str(tmp_path / "a.words"), reader="words")
    reader = open_reader("a", corpus)
    check_readers([reader])
    records = list(islice(iter(reader.read, None), 3))
    again = open_reader("a", corpus)
    again.seek(reader.tell())
    assert json.loads(records[1].parts[0]) == {"text": "two"} and reader.count() == 4
    assert again.read() == reader.at(3) and again.read() is None


def test_the_example_of_the_documentation(tmp_path: Path, plugin: None) -> None:
    page = Path(__file__).parents[4] / "docs" / "how-to" / "corpora.md"
    exec(page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], {})
    with sqlite3.connect(tmp_path / "notes.db") as notes:
        notes.execute("create table notes (body)")
        notes.executemany("insert into notes values (?)", [("one",), ("two",)])
    reader = open_reader("a", CorpusConfig(path_table=str(tmp_path / "notes.db"), reader="sqlite_notes"))
    assert [json.loads(record.parts[0]) for record in iter(reader.read, None)] == [{"body": "one"}, {"body": "two"}]


def test_what_is_wrong_with_a_reader(tmp_path: Path, plugin: None) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(ConfigError, match=r"'word' is not a known reader"):
        open_reader("a", CorpusConfig(path_table=str(tmp_path / "a"), reader="word"))
    with pytest.raises(ConfigError, match="must have path_table if it has a reader"):
        open_reader("a", CorpusConfig(path_txt=str(tmp_path / "a"), reader="words"))
    with pytest.raises(DataError, match=r"must give record 1 of .*TypeError"):
        open_reader("a", CorpusConfig(path_table=str(tmp_path / "a"), reader="broken")).read()
    with pytest.raises(DataError, match="must be a file"):
        open_reader("a", CorpusConfig(path_table=str(tmp_path), reader="words")).check()
