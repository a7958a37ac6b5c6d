"""Files that are not quite text: oddities are refused, or counted and reported."""

from __future__ import annotations

import logging
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.inspection.html import warnings
from onmt_llm.data.inspection.report import CorpusReport, table
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.readers import IndexCache, open_reader
from onmt_llm.errors import DataError

Write = Callable[[str, "str | bytes"], str]
MakePipeline = Callable[..., Pipeline]
TEXT = b"".join(b"a b %d\n" % number for number in range(2000))
SKIPPABLE = b"\x50\x2a\x4d\x18" + (300).to_bytes(4, "little") + bytes(300)


def lines(path: str) -> list[bytes]:
    reader = open_reader("x", CorpusConfig(path_src=path), cache=IndexCache())
    reader.check()
    return [record.parts[0] for record in iter(reader.read, None)]


@pytest.fixture
def zstd():
    try:
        from compression import zstd
    except ImportError:
        zstd = pytest.importorskip("backports.zstd")
    checked = {zstd.CompressionParameter.checksum_flag: 1}
    return lambda data, checksum=True: zstd.compress(data, options=checked if checksum else None)


@pytest.mark.parametrize("checksum", [True, False])
def test_frames_of_zstd_that_hold_no_text_are_passed_over(
    zstd, write: Write, checksum: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """pzstd begins each frame with one; the seekable format ends the file with one."""
    halves = [zstd(half, checksum) for half in (TEXT[:5000], TEXT[5000:])]
    large = b"\x5e\x2a\x4d\x18" + (1 << 18).to_bytes(4, "little") + bytes(1 << 18)
    contents = [
        SKIPPABLE + halves[0] + SKIPPABLE + halves[1],
        halves[0] + halves[1] + SKIPPABLE,
        SKIPPABLE * 3 + large + halves[0] + halves[1] + large,
    ]
    for number, content in enumerate(contents):
        caplog.clear()
        path = write(f"{number}-{checksum}.zst", content)
        assert lines(path) == TEXT.splitlines()
        told = [record.message for record in caplog.records if "has no checksum" in record.message]
        assert len(told) == (not checksum) and all(path in message for message in told)


@pytest.mark.parametrize("cut", [3, 9, 200])
def test_a_cut_frame_without_text_is_refused(zstd, write: Write, cut: int) -> None:
    path = write("x.zst", zstd(TEXT) + SKIPPABLE[:cut])
    with pytest.raises(DataError, match=r"ends before the end|has other bytes"):
        lines(path)
    path = write("y.zst", SKIPPABLE[:-1])
    with pytest.raises(DataError, match="ends before the end"):
        lines(path)


@pytest.mark.parametrize("check", [lzma.CHECK_NONE, lzma.CHECK_CRC64])
def test_an_xz_file_without_checksum_is_told(write: Write, check: int, caplog: pytest.LogCaptureFixture) -> None:
    path = write(f"{check}.xz", lzma.compress(TEXT, check=check))
    assert lines(path) == TEXT.splitlines()
    assert any("has no checksum" in record.message for record in caplog.records) == (check == lzma.CHECK_NONE)


ZEROS = {
    "UTF-16 in the second half": TEXT + TEXT.decode().encode("utf-16-le"),
    "a hole": TEXT[:4096] + bytes(4096) + TEXT[8192:],
    "zeros at the end": b"a b\nc d\n" + bytes(2000),
}


@pytest.mark.parametrize("content", ZEROS.values(), ids=ZEROS)
def test_zero_bytes_are_refused_or_counted(write: Write, make_pipeline: MakePipeline, content: bytes) -> None:
    path = write("x", content)
    offset = content.index(b"\0")
    line = content.count(b"\n", 0, offset) + 1
    corpora = {"x": CorpusConfig(path_src=path)}
    with pytest.raises(DataError, match=f"zero bytes, but .*x:{line} holds one at offset {offset} of"):
        list(make_pipeline(corpora, {"epochs": 1}))
    pipeline = make_pipeline(corpora, {"epochs": 1, "on_bad_line": "skip"})
    list(pipeline)
    counts = pipeline.counts["x"]
    assert counts.dropped["zero_bytes"] > 0
    assert counts.read == counts.kept + counts.dropped.total() == content.count(b"\n") + (content[-1:] != b"\n")


def test_utf16_is_told_from_the_start_and_zeros_at_the_end_are_not_called_so(write: Write) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(DataError, match="UTF-16"):
            lines(write("x", TEXT.decode().encode(encoding)))
    assert len(lines(write("y", ZEROS["zeros at the end"]))) == 3


def test_a_byte_order_mark_at_a_later_line_is_counted_and_told(
    write: Write, make_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    mark = "\ufeff"
    text = write("x", f"{mark}a b\nc\n{mark}d\n{mark}e {mark}\nf\n")
    documents = write("y", f"{mark}a b\nc\n\nd\n{mark}e\n\nf\n")
    corpora = {"x": CorpusConfig(path_src=text), "y": CorpusConfig(path_txt=documents)}
    pipeline = make_pipeline(corpora, {"epochs": 1})
    list(pipeline)
    found = {name: counts.suspect["byte_order_mark"] for name, counts in pipeline.counts.items()}
    assert found == {"x": 2, "y": 1}
    assert all(counts.read == counts.kept for counts in pipeline.counts.values())
    told = [record.message for record in caplog.records if "byte-order-mark" in record.message]
    assert len(told) == 2 and f"{text}:3" in told[0] and f"{documents}:4" in told[1]
    assert "read 5, 2 with byte order mark, kept 5" in pipeline.summary()
    report = CorpusReport("x", (text,), (), 1, pipeline.counts["x"])
    assert "byte_order_mark" in table([report]) and "2 records have a byte order mark" in " ".join(warnings(report))
    assert report.to_dict()["suspect"] == {"byte_order_mark": 2}


def test_a_corpus_that_grows_is_told_once_and_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "x"
    path.write_bytes(TEXT)
    reader = open_reader("x", CorpusConfig(path_src=str(path)))
    for turn in range(4):
        assert reader.read()
        if turn < 3:  # within a pass, and between two
            with path.open("ab") as file:
                file.write(b"more\n" * 10)
        assert sum(1 for _ in iter(reader.read, None)) == 2000 + 10 * min(turn + 1, 3) - 1
        if turn == 1:
            with path.open("ab") as file:
                file.write(b"")
        reader.rewind()
    assert [record.message.count("has grown") for record in caplog.records] == [1]


def test_a_corpus_that_shrinks_between_two_passes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(TEXT)
    reader = open_reader("x", CorpusConfig(path_src=str(path)))
    assert sum(1 for _ in iter(reader.read, None)) == 2000
    path.write_bytes(TEXT[:5000])
    with pytest.raises(DataError, match=r"ends at byte 5000 and had \d+ bytes"):
        reader.rewind()
        reader.read()
