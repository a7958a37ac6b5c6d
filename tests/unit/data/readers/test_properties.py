"""Readers of arbitrary bytes: records found, resuming at any position, access by number, skipping."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import IndexCache, Reader, Record, ShuffledReader, check_readers, open_reader
from onmt_llm.data.readers.index import count_lines
from onmt_llm.data.readers.shuffled import Permutation
from onmt_llm.errors import DataError

zstd = pytest.importorskip("backports.zstd")
pyarrow = pytest.importorskip("pyarrow")

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
BOM = b"\xef\xbb\xbf"

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
lines = st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")), max_size=12)
texts = st.lists(st.text(max_size=8), min_size=1, max_size=12)
ending = st.sampled_from([b"", b"\n", b"\r\n"])
compression = st.sampled_from(list(COMPRESS))
position = st.integers(0, 1 << 16)


def put(folder: Path, name: str, content: bytes, suffix: str = "") -> str:
    path = folder / (name + suffix)
    path.write_bytes(COMPRESS[suffix](content))
    return str(path)


def rest(reader: Reader) -> list[Record]:
    return list(iter(reader.read, None))


def behaves(new: Callable[[], Reader], place: int) -> list[Record]:
    """All records, having seen that a reader finds them from any position and by number, and passes over them."""
    reader = new()
    records = rest(reader)
    assert reader.read() is None
    reader.rewind()
    assert rest(reader) == records
    place %= len(records) + 1
    first, second, third = new(), new(), new()
    for _ in range(place):
        first.read()
    position = json.loads(json.dumps(first.tell()))
    second.seek(position)
    assert rest(second) == records[place:]
    second.seek(position)  # also backwards
    second.close()  # also after a close
    assert rest(second) == records[place:]
    assert third.skip(place) == place and third.tell()[-1] == position[-1]
    assert rest(third) == records[place:] and third.skip(3) == 0
    count = reader.count()
    if count is not None:
        assert [reader.at(number) for number in reversed(range(count))] == records[::-1]
    for opened in (reader, first, second, third):
        opened.close()
    return records


def split(content: bytes) -> list[bytes]:
    """The lines of bytes, by the definition."""
    found = content.removeprefix(BOM).split(b"\n")
    if not found[-1]:
        found.pop()
    return [line.removesuffix(b"\r") for line in found]


@quick
@given(raw=lines, end=ending, mark=st.booleans(), suffix=compression, place=position)
def test_lines_are_what_newline_bytes_part(
    tmp_path: Path, raw: list[bytes], end: bytes, mark: bool, suffix: str, place: int
) -> None:
    content = BOM * mark + b"\n".join(raw) + end
    corpus = CorpusConfig(path_src=put(tmp_path, "a", content, suffix))
    records = behaves(lambda: open_reader("a", corpus), place)
    wanted = split(content)
    # the last line may lack its break, and then a carriage return at its end is its own
    if wanted and not content.endswith(b"\n"):
        wanted[-1] = content.removeprefix(BOM).split(b"\n")[-1]
    assert [record.parts for record in records] == [(line,) for line in wanted]
    assert [record.line for record in records] == list(range(1, len(wanted) + 1))
    assert count_lines(tmp_path / f"a{suffix}") == len(wanted)


@quick
@given(raw=lines, files=st.integers(1, 3), suffix=compression, place=position)
def test_parallel_files_and_chains_of_them(
    tmp_path: Path, raw: list[bytes], files: int, suffix: str, place: int
) -> None:
    sides = {"path_src": b"".join(b"s" + line + b"\n" for line in raw), "path_tgt": b"t\n" * len(raw)}
    paths: dict[str, Any] = {
        key: [put(tmp_path, f"{key}{number}", content, suffix) for number in range(files)]
        for key, content in sides.items()
    }
    records = behaves(lambda: open_reader("a", CorpusConfig(**paths)), place)
    wanted = [(line, b"t") for line in split(sides["path_src"])]
    assert [record.parts for record in records] == wanted * files
    assert [record.paths[1].name for record in records[:: max(len(wanted), 1)]] == [
        f"path_tgt{number}{suffix}" for number in range(files if wanted else 0)
    ]


@quick
@given(
    raw=st.lists(st.sampled_from([b"", b" ", b"a b", b"word", b"\xc3\xa9"]), max_size=14),
    by=st.sampled_from(["blank_line", "file", "line"]),
    most=st.integers(4, 30),
    suffix=compression,
    place=position,
)
def test_documents_lose_nothing_and_cut_no_word(
    tmp_path: Path, raw: list[bytes], by: str, most: int, suffix: str, place: int
) -> None:
    content = b"\n".join(raw)
    corpus = CorpusConfig(path_txt=put(tmp_path, "a", content, suffix), documents_by=by)
    records = behaves(lambda: open_reader("a", corpus, max_bytes=most), place)
    found = [record.parts[0] for record in records]
    assert b" ".join(found).split() == content.split()
    if by != "line":
        assert all(len(document) <= most for document in found)
    if by == "blank_line" and most > len(content):
        blocks = "\n".join("" if not line.strip() else line for line in content.decode().split("\n")).split("\n\n")
        assert [document.split() for document in found] == [b.encode().split() for b in blocks if b.strip()]


@quick
@given(items=texts, indent=st.sampled_from([None, 1]), mark=st.booleans(), suffix=compression, place=position)
def test_json_arrays_and_json_lines_hold_the_same(
    tmp_path: Path, items: list[str], indent: int | None, mark: bool, suffix: str, place: int
) -> None:
    objects = [{"text": item, "more": [{"}": "]"}, item]} for item in items]
    dump = [json.dumps(item, ensure_ascii=mark) for item in objects]
    whole = BOM * mark + json.dumps(objects, indent=indent, ensure_ascii=mark).encode()
    array = CorpusConfig(path_json=put(tmp_path, "a", whole, suffix))
    jsonl = CorpusConfig(path_jsonl=put(tmp_path, "l", "\n".join(dump).encode(), suffix))
    for corpus in (array, jsonl):
        records = behaves(lambda corpus=corpus: open_reader("a", corpus), place)  # type: ignore[misc]
        assert [json.loads(record.parts[0]) for record in records] == objects


@quick
@given(rows=st.lists(st.tuples(*[st.text('ab",\n é', max_size=6)] * 2), max_size=8), suffix=compression, place=position)
def test_csv_rows_are_those_of_the_csv_module(
    tmp_path: Path, rows: list[tuple[str, str]], suffix: str, place: int
) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    corpus = CorpusConfig(path_table=put(tmp_path, "a.csv", out.getvalue().encode(), suffix))
    records = behaves(lambda: open_reader("a", corpus), place)
    assert [tuple(next(csv.reader([record.parts[0].decode()]))) for record in records] == rows


@quick
@given(items=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12), place=position)
def test_rows_of_tables(tmp_path: Path, items: list[str], place: int) -> None:
    from pyarrow import parquet

    table = pyarrow.table({"other": list(range(len(items))), "text": pyarrow.array(items, "string")})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    for name, new in (("a.arrow", pyarrow.ipc.new_file), ("s.arrow", pyarrow.ipc.new_stream)):
        with pyarrow.OSFile(str(tmp_path / name), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    for name in ("a.parquet", "a.arrow", "s.arrow"):
        corpus = CorpusConfig(path_table=str(tmp_path / name))
        records = behaves(lambda corpus=corpus: open_reader("a", corpus), place)  # type: ignore[misc]
        assert [json.loads(record.parts[0]) for record in records] == [{"text": item} for item in items]


@quick
@given(raw=st.binary(max_size=60), suffix=st.sampled_from([".gz", ".xz", ".zst"]))
def test_any_bytes_of_a_compressed_file_give_all_its_lines_or_an_error(tmp_path: Path, raw: bytes, suffix: str) -> None:
    whole = COMPRESS[suffix](b"one\ntwo\nthree\n")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole[: len(raw) % len(whole)] + raw)
    reader = open_reader("a", CorpusConfig(path_src=str(path)))
    try:
        check_readers([reader])
    except DataError:
        return
    assert [record.parts[0] for record in rest(reader)][:3] == [b"one", b"two", b"three"]


@given(count=st.integers(1, 3000), key=st.text(max_size=5))
@quick
def test_a_permutation_reaches_every_number_once(count: int, key: str) -> None:
    order = Permutation(count, key)(np.arange(count, dtype=np.uint64))
    assert sorted(order.tolist()) == list(range(count))


def test_a_permutation_leaves_no_pattern() -> None:
    count = 100_000
    order = Permutation(count, "key")(np.arange(count, dtype=np.uint64)).astype(np.float64)
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert np.abs(np.histogram(order[: count // 10], 10)[0] - count / 100).max() < 150


@quick
@given(
    raw=st.lists(st.binary(min_size=1, max_size=5).map(lambda b: b.replace(b"\n", b" ")), min_size=1), place=position
)
def test_a_shuffled_corpus_is_read_whole_in_every_pass(tmp_path: Path, raw: list[bytes], place: int) -> None:
    corpus = CorpusConfig(path_src=put(tmp_path, "a", b"\n".join(raw) + b"\n"))

    def new() -> ShuffledReader:
        return ShuffledReader("a", open_reader("a", corpus, cache=IndexCache(tmp_path / "cache")), seed=3)

    reader = new()
    passes = []
    for _ in range(3):
        passes.append(rest(reader))
        reader.rewind()
    assert all(sorted(record.line for record in found) == list(range(1, len(raw) + 1)) for found in passes)
    reader.seek([0, 1])
    place %= len(raw)
    assert reader.skip(place) == place
    again = new()
    again.seek(reader.tell())
    assert rest(again) == passes[1][place:]
    assert [again.at(number) for number in range(again.count())] == passes[1]
