"""Malformed corpora: each is refused with its exit code and one sentence that says where and what.

All go through `onmt_llm_build_vocab`, which reads every record of every corpus, without a subprocess each.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from onmt_llm.cli.build_vocab import main

pyarrow = pytest.importorskip("pyarrow")
zstd = pytest.importorskip("backports.zstd")

TEXT = "".join(f"line number {i}\n" for i in range(300)).encode()
GZ, XZ, ZST = gzip.compress(TEXT), lzma.compress(TEXT), zstd.compress(TEXT)
TURN = {"role": "user", "content": "x"}


class Case(NamedTuple):
    """Files, the options of the corpus, what the message must hold, the exit code."""

    files: dict[str, bytes | Callable[[Path], object]]
    corpus: dict[str, Any]
    parts: list[str]
    code: int = 3


def src(content: bytes, *parts: str, name: str = "a.txt") -> Case:
    return Case({name: content}, {"path_src": name}, [name, *parts])


def pair(source: bytes, target: bytes, *parts: str, **more: Any) -> Case:
    return Case({"s": source, "t": target}, {"path_src": "s", "path_tgt": "t", **more}, list(parts))


def jsonl(line: bytes | str, *parts: str, **options: Any) -> Case:
    content = b'{"text": "ok"}\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n"
    return Case({"a.jsonl": content}, {"path_jsonl": "a.jsonl", **options}, ["a.jsonl:2", *parts])


def chat(turns: Any, *parts: str) -> Case:
    return jsonl(json.dumps({"messages": turns}), *parts, template="chatml")


def array(content: bytes, *parts: str) -> Case:
    return Case({"a.json": content}, {"path_json": "a.json"}, ["a.json", *parts])


def table(name: str, content: bytes | Callable[[Path], object], *parts: str, **options: Any) -> Case:
    return Case({name: content}, {"path_table": name, **options}, [name, *parts])


def config(corpus: dict[str, Any], *parts: str, files: tuple[str, ...] = ("a", "b")) -> Case:
    return Case(dict.fromkeys(files, b"x\n"), corpus, list(parts), 2)


def flipped(raw: bytes, place: int) -> bytes:
    changed = bytearray(raw)
    changed[place] ^= 0x10
    return bytes(changed)


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("x.txt")
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT))
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.txt", TEXT)
    return out.getvalue()


def with_dictionary() -> bytes:
    samples = [f"sample {i} with some words {i * i} of its own".encode() for i in range(2000)]
    compressed: bytes = zstd.compress(TEXT, zstd_dict=zstd.train_dict(samples, 2000))
    return compressed


def parquet(values: dict[str, Any]) -> bytes:
    from pyarrow import parquet as module

    out = io.BytesIO()
    module.write_table(pyarrow.table(values), out)
    return out.getvalue()


def arrow(table_: Any, *, stream: bool = False) -> bytes:
    out = io.BytesIO()
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(out, table_.schema) as writer:
        writer.write_table(table_)
    return out.getvalue()


def not_utf8() -> Any:
    """A column of strings whose second value is not UTF-8."""
    return pyarrow.Array.from_buffers(
        pyarrow.string(),
        2,
        [None, pyarrow.py_buffer(struct.pack("<3i", 0, 2, 4)), pyarrow.py_buffer(b"okx\xff")],
    )


def loose_dictionary() -> Any:
    indices = pyarrow.array([0, 9], pyarrow.int32())
    return pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["a"]), safe=False)})


PARQUET = parquet({"text": ["one", "two"] * 500})
ARROW = arrow(pyarrow.table({"text": ["one", "two"] * 500}))
CSV = b"prompt,answer\na,b\n"

CASES: dict[str, Case] = {
    # text
    "empty": src(b"", "must not be empty"),
    "byte-order mark alone": src(b"\xef\xbb\xbf", "must not be empty"),
    "byte 0xff": src(b"one\nx\xff\n", "a.txt:2 holds the byte 0xff at offset 5"),
    "cut sequence": src(b"one\nx\xf0\x9f\x98\n", "a.txt:2 holds the byte 0xf0 at offset 5"),
    "overlong": src(b"one\n\xc0\xaf\n", "a.txt:2 holds the byte 0xc0"),
    "surrogates": src(b"one\n\xed\xa0\xbd\xed\xb8\x80\n", "a.txt:2 holds the byte 0xed"),
    "latin-1": src("naïve\n".encode("latin-1"), "a.txt:1 holds the byte 0xef at offset 2"),
    "UTF-16": src("\ufeffone\ntwo\n".encode("utf-16-le"), "is UTF-16 text", "iconv"),
    "UTF-16, big end first": src("\ufeffone\ntwo\n".encode("utf-16-be"), "is UTF-16 text"),
    "UTF-16 without mark": src("one\ntwo\n".encode("utf-16-le"), "as in UTF-16 text"),
    "carriage returns": src(b"one\rtwo\rthree\r", "a carriage return only"),
    "bzip2": src(bz2.compress(TEXT), "is bzip2-compressed"),
    "zip": src(zipped(), "is a zip archive"),
    "tar": src(tar(), "is a tar archive"),
    "Git LFS": src(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer", "git lfs pull"),
    "Parquet as text": src(PARQUET, "is a Parquet table", "path_table"),
    "Arrow as text": src(ARROW, "is an Arrow table"),
    "missing": Case({}, {"path_src": "a.txt"}, ["must be a file that exists", "'a.txt' is not", "data.c.path_src"]),
    "directory": Case({"d": lambda p: p.mkdir()}, {"path_src": "d"}, ["must be a file", "'d'"]),
    "pipe": Case({"p": os.mkfifo}, {"path_src": "p"}, ["must be a file", "'p'"]),
    "link to itself": Case({"l": lambda p: p.symlink_to(p)}, {"path_src": "l"}, ["must be a file", "'l'"]),
    "link to nothing": Case({"l": lambda p: p.symlink_to("no")}, {"path_src": "l"}, ["must be a file", "'l'"]),
    "pattern without match": Case({}, {"path_src": "*.txt"}, ["'*.txt' matches none"]),
    "blank documents": Case({"a": b"\n \n\n"}, {"path_txt": "a"}, ["must not be empty", "a holds no example"]),
    "bad byte in a document": Case({"a": b"x\n\none\nt\xffo\n"}, {"path_txt": "a"}, ["a:4", "0xff at offset 8"]),
    # parallel text
    "longer source": pair(b"a\nb\nc\n", b"a\nb\n", "s has 3 lines", "t has 2 lines"),
    "longer target": pair(b"a\nb\n", b"a\nb\nc", "s has 2 lines", "t has 3 lines"),
    "form feed splits nothing": pair(b"a\x0cb\n", b"a\nb\n", "s has 1 lines", "t has 2 lines"),
    "U+2028 splits nothing": pair("a\u2028b\n".encode(), b"a\nb\n", "s has 1 lines", "t has 2 lines"),
    "bad target": pair(b"a\nb\n", b"a\n\xff\n", "t:2 holds the byte 0xff at offset 2"),
    "compressed target is shorter": Case(
        {"s": TEXT, "t.gz": gzip.compress(TEXT[:-20])},
        {"path_src": "s", "path_tgt": "t.gz"},
        ["s has 300 lines", "t.gz has 299 lines"],
    ),
    "second files of two": Case(
        {"s1": b"a\n", "s2": b"a\nb\n", "t1": b"a\n", "t2": b"a\n"},
        {"path_src": ["s1", "s2"], "path_tgt": ["t1", "t2"]},
        ["s2 has 2 lines", "t2 has 1 lines"],
    ),
    "shorter alignment": Case(
        {"s": b"a\nb\n", "t": b"a\nb\n", "al": b"0-0\n"},
        {"path_src": "s", "path_tgt": "t", "path_align": "al"},
        ["al has 1 lines"],
    ),
    "no alignment": Case(
        {"s": b"a\n", "t": b"a\n", "al": b"0:0\n"},
        {"path_src": "s", "path_tgt": "t", "path_align": "al"},
        ["al:1 must hold pairs", "0:0"],
    ),
    "shorter scores": Case(
        {"s": b"a\nb\n", "n": b"1\n"}, {"path_src": "s", "path_sco": "n", "score_threshold": 0}, ["n has 1 lines"]
    ),
    "score of words": Case(
        {"s": b"a\nb\n", "n": b"1\ngood\n"}, {"path_src": "s", "path_sco": "n", "score_threshold": 0}, ["n:2", "good"]
    ),
    "score nan": Case(
        {"s": b"a\nb\n", "n": b"1\nnan\n"}, {"path_src": "s", "path_sco": "n", "score_threshold": 0}, ["n:2", "nan"]
    ),
    # compressed
    "empty .gz": src(b"", "is empty", name="a.gz"),
    "text named .gz": src(TEXT, "a gzip file where its name says so", name="a.gz"),
    "text named .zst": src(TEXT, "a zstd file where its name says so", name="a.zst"),
    "text named .xz": src(TEXT, "a xz file where its name says so", name="a.xz"),
    "gzip without its name": src(GZ, "is gzip-compressed", "rename it to a.txt.gz"),
    "zstd without its name": src(ZST, "is zstd-compressed", "rename it to a.txt.zst"),
    "xz named .gz": src(XZ, "a gzip file where its name says so", name="a.gz"),
    "gzip twice": src(gzip.compress(GZ), "compressed again", name="a.gz"),
    "tar.gz": src(gzip.compress(tar()), "is a tar archive", name="a.tar.gz"),
    "cut .gz": src(GZ[:-30], "ends before the end of the stream", name="a.gz"),
    "cut checksum of .gz": src(GZ[:-6], "ends before the end of the stream", name="a.gz"),
    "flipped .gz": src(flipped(GZ, len(GZ) // 2), "is damaged", name="a.gz"),
    "flipped checksum of .gz": src(flipped(GZ, len(GZ) - 6), "is damaged", name="a.gz"),
    "flipped length of .gz": src(flipped(GZ, len(GZ) - 3), "is damaged", name="a.gz"),
    "garbage behind .gz": src(GZ + b"garbage", "other bytes after the end of the stream", name="a.gz"),
    "cut second member of .gz": src(GZ + GZ[:-30], "ends before the end", name="a.gz"),
    "bad byte in .gz": src(gzip.compress(b"one\nx\xff\n"), "a.gz:2 holds the byte 0xff at offset 5", name="a.gz"),
    "cut .zst": src(ZST[:-9], "ends before the end of the stream", name="a.zst"),
    "flipped .zst": src(flipped(ZST, 5), "a.zst", name="a.zst"),
    "garbage behind .zst": src(ZST + b"garbage", "other bytes after the end", name="a.zst"),
    ".zst of a dictionary": src(with_dictionary(), "is damaged", "ictionary", name="a.zst"),
    "cut .xz": src(XZ[:-9], "ends before the end of the stream", name="a.xz"),
    "flipped .xz": src(flipped(XZ, len(XZ) // 2), "is damaged", name="a.xz"),
    "garbage behind .xz": src(XZ + b"garbage", "other bytes after the end", name="a.xz"),
    # JSONL
    "cut record": jsonl('{"text": "o', "is not JSON"),
    "two objects": jsonl('{"text": "a"} {"text": "b"}', "is not JSON: Extra data at column 15"),
    "pretty-printed": jsonl('{\n  "text": "a"\n}', "is not JSON", "one JSON object per line"),
    "array as JSONL": jsonl('[{"text": "a"}]', "is a list", "path_json reads"),
    "text alone": jsonl('"text"', "but is text"),
    "null": jsonl("null", "but is null"),
    "single quotes": jsonl("{'text': 'a'}", "is not JSON"),
    "bare control character": jsonl('{"text": "a\tb"}', "is not JSON", "control character"),
    "bad byte": jsonl(b'{"text": "\xff"}', "holds the byte 0xff at offset 25"),
    "no known key": jsonl('{"txt": "a"}', "must have 'text'", "but has txt"),
    "no key": jsonl("{}", "but has no keys"),
    "number as text": jsonl('{"text": 3}', "must have text under 'text', but has a number"),
    "null as text": jsonl('{"text": null}', "but has null"),
    "list as text": jsonl('{"text": ["a"]}', "but has a list"),
    "answer without text": jsonl('{"prompt": "a", "answer": {}}', "under 'answer', but has an object"),
    "NaN": jsonl('{"text": "a", "p": NaN}', "NaN is not a JSON number"),
    "Infinity": jsonl('{"text": "a", "p": -Infinity}', "-Infinity is not a JSON number"),
    "key twice": jsonl('{"text": "a", "text": "b"}', "has the key 'text' twice"),
    "half a surrogate pair": jsonl('{"text": "\\ud800"}', "half a surrogate pair"),
    "very deep": jsonl("[" * 100_000, "a.jsonl:2"),
    "very long number": jsonl('{"text": "a", "n": ' + "9" * 5000 + "}", "a.jsonl:2", "digits"),
    "conversation of text": chat("hello", "must have a list of turns"),
    "turns of text": chat(["hello"], "must have a list of turns"),
    "turn without content": chat([{"role": "user"}], "'role' and 'content'", "one has role"),
    "content of parts": chat([{"role": "user", "content": [{"type": "text"}]}], "under 'text'"),
    "unknown role": chat([{"role": "robot", "content": "x"}], "but has 'robot'", "roles: {assistant: [robot]}"),
    "system text in the middle": chat([TURN, {"role": "system", "content": "x"}], "chat template"),
    # JSON arrays
    "object as array": array(b'{"text": "a"}', "begin with '['", "path_jsonl"),
    "lines as array": array(b'{"text": "a"}\n{"text": "b"}\n', "begin with '['"),
    "empty array": array(b"[ ]", "must not be empty"),
    "array cut between": array(b'[{"text": "a"},\n', "a.json:2", "ends within an element"),
    "array cut within": array(b'[{"text": "a"},\n{"text": "b', "a.json:2", "ends within an element"),
    "array without end": array(b'[{"text": "a"}\n', "after every element, but has nothing more"),
    "no comma": array(b'[{"text": "a"}\n{"text": "b"}]', "a.json:2", "',' or ']' after every element"),
    "two commas": array(b'[{"text": "a"},,{"text": "b"}]', "an element after every comma"),
    "comma at the end": array(b'[{"text": "a"},]', "an element after every comma"),
    "two arrays": array(b'[{"text": "a"}]\n[{"text": "b"}]', "a.json:2", "only content of the file"),
    "array of numbers": array(b"[1, 2]", "a.json:1", "is a number"),
    "bad element": array(b'[{"text": "a"},\n{"text": }]', "a.json:2", "is not JSON"),
    # rows
    "too few fields": table("a.csv", CSV + b"c\n", "a.csv:3 must have 2 fields (prompt, answer), but has 1"),
    "too many fields": table("a.csv", CSV + b"c,d,e\n", "a.csv:3 must have 2 fields", "but has 3"),
    "open quote": table("a.csv", CSV + b'"c,d\ne,f\n', "a.csv:3 is not by the end of the file"),
    "stray quotes": table("a.csv", CSV + b'5" disk,d\n6" disk,f\n', "a.csv:3 must be a valid row"),
    "text behind a quote": table("a.csv", CSV + b'"c"x,d\n', "a.csv:3 must be a valid row"),
    "header alone": table("a.csv", b"prompt,answer\n", "must not be empty"),
    "column twice": table("a.csv", b"prompt,prompt\na,b\n", "must give every column a name of its own"),
    "column without name": table("a.csv", b"prompt,\na,b\n", "must give every column a name"),
    "other columns": table("a.csv", b"question,reply\na,b\n", "a.csv:2", "but has question, reply"),
    "bad byte in a row": table("a.csv", CSV + b'"c\nx\xff",d\n', "a.csv:4 holds the byte 0xff at offset 22"),
    "tab missing": table("a.tsv", b"prompt\tanswer\na\tb\nc d\n", "a.tsv:3 must have 2 fields"),
    # tables
    "cut Parquet": table("a.parquet", PARQUET[:-20], "must be a whole Parquet file"),
    "Parquet without its end": table("a.parquet", PARQUET[: len(PARQUET) // 2], "must be a whole Parquet file"),
    "text as Parquet": table("a.parquet", TEXT, "must be a whole Parquet file"),
    "empty Parquet": table("a.parquet", b"", "must be a whole Parquet file"),
    "Parquet without rows": table("a.parquet", parquet({"text": pyarrow.array([], "string")}), "must not be empty"),
    "Parquet of other columns": table("a.parquet", parquet({"txt": ["a"]}), "but those of a.parquet are txt"),
    "Parquet of numbers": table("a.parquet", parquet({"text": [1]}), "a.parquet:1", "but has a number"),
    "Parquet of lists": table("a.parquet", parquet({"text": [["a"]]}), "a.parquet:1", "but has a list"),
    "Parquet of bytes": table("a.parquet", parquet({"text": [b"a"]}), "a.parquet:1", "'text' of type bytes"),
    "null in Parquet": table("a.parquet", parquet({"text": ["a", None]}), "a.parquet:2", "but has null"),
    "bad byte in Parquet": table("a.parquet", parquet({"text": not_utf8()}), "a.parquet:2 holds the byte 0xff"),
    "cut Arrow": table("a.arrow", ARROW[:-20], "must be a whole Arrow file"),
    "cut Arrow stream": table(
        "a.arrow", arrow(pyarrow.table({"text": ["one"] * 99}), stream=True)[:-200], "must be a whole Arrow file"
    ),
    "text as Arrow": table("a.arrow", TEXT, "must be a whole Arrow file"),
    "bad byte in Arrow": table("a.arrow", arrow(pyarrow.table({"text": not_utf8()})), "must be a whole Arrow file"),
    "Arrow index beyond its dictionary": table("a.arrow", arrow(loose_dictionary()), "must be a whole Arrow file"),
    # options that do not go together
    "no path": config({"weight": 1}, "but has none of them"),
    "two sources": config({"path_src": "a", "path_txt": "b"}, "but has path_src and path_txt"),
    "target of JSONL": config({"path_jsonl": "a", "path_tgt": "b"}, "but has path_jsonl and path_tgt"),
    "one target for two sources": config(
        {"path_src": ["a", "b"], "path_tgt": "a"}, "the same number of files each", "path_src 2, path_tgt 1"
    ),
    "scores without threshold": config({"path_src": "a", "path_sco": "b"}, "must have score_threshold"),
    "threshold without scores": config({"path_src": "a", "score_threshold": 0.5}, "must have path_sco"),
    "table of unknown kind": config({"path_table": "a"}, "of one kind, .csv, .tsv, .parquet"),
    "tables of two kinds": config({"path_table": ["a.csv", "b.tsv"]}, "but has .csv, .tsv", files=("a.csv", "b.tsv")),
    "role that nobody has": config({"path_jsonl": "a", "roles": {"robot": ["x"]}}, "but one is 'robot'"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_malformed_corpus_is_refused_with_one_sentence(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in case.files.items():
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            content(Path(name))
    Path("x.yaml").write_text(json.dumps({"data": {"c": case.corpus}, "src_vocab": "v", "tgt_vocab": "w"}))
    code = main(
        ["-config", "x.yaml", "-n_sample", "-1", "-model_task", "lm" if "path_tgt" not in case.corpus else "seq2seq"]
    )
    said = capsys.readouterr().err
    assert code == case.code and said.count("error:") == 1, said
    assert all(part in said for part in case.parts), said
    assert not Path("v").exists()
