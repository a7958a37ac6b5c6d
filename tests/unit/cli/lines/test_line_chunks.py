"""The input in chunks: any size gives the same prompts; streams are read as they arrive; files must not change."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onmt_llm.cli.lines.chunks import ChunkReader, LineChunk, LineInput, chunk_lines
from onmt_llm.data.transforms.build import inference_transforms
from onmt_llm.data.transforms.docify import DocifyConfig
from onmt_llm.errors import DataError
from onmt_llm.generate.line_prompts import LinePrompts
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from tiny_codecs import make_context

CONTEXT = make_context(task="seq2seq", tokenizer=WhitespaceTokenizer())


def builder(*names: str, max_context: int = 1) -> partial[LinePrompts]:
    text, tokens = inference_transforms(names, {"docify": DocifyConfig(max_context=max_context)}, CONTEXT)
    return partial(LinePrompts, text=text, tokens=tokens, encode=CONTEXT.codec.encode, codec=CONTEXT.codec)


def write(path: Path, lines: list[str]) -> LineInput:
    path.write_text("".join(f"{line}\n" for line in lines))
    return LineInput(str(path))


def read(src: LineInput, tgt: LineInput | None = None, *, size: int = 2, done: int = 0) -> list[LineChunk]:
    reader = ChunkReader(src, tgt)
    reader.skip(done)
    return list(reader.chunks(size, builder()))


@given(
    st.lists(st.sampled_from(["", "a", "b c", "d e f"]), max_size=14),
    st.integers(1, 6),
    st.integers(0, 4),
    st.booleans(),
)
def test_chunks_of_any_size_give_the_same_prompts(lines: list[str], size: int, max_context: int, joins: bool) -> None:
    build = builder(*(["docify"] if joins else []), max_context=max_context)
    stream = SimpleNamespace(count=None, take=Feed(lines).take)
    found = list(ChunkReader(stream, None).chunks(size, build))  # type: ignore[arg-type]
    assert [line for chunk in found for line in chunk.lines] == lines
    whole = build(lines)
    assert [prompt for chunk in found for prompt in chunk.prompts.prompts] == whole.prompts
    assert [place for chunk in found for place in chunk.prompts.places] == whole.places


class Feed:
    """Lines that are there at once."""

    def __init__(self, lines: list[str]) -> None:
        self.left = list(lines)

    def take(self, most: int) -> list[str]:
        taken, self.left = self.left[:most], self.left[most:]
        return taken


def test_chunks_have_their_place_and_the_lines_of_tgt(tmp_path: Path) -> None:
    src, tgt = write(tmp_path / "src", ["a", "b", "c"]), write(tmp_path / "tgt", ["x", "y", "z"])
    found = read(src, tgt)
    assert [(chunk.first, chunk.lines, chunk.references) for chunk in found] == [
        (0, ["a", "b"], ["x", "y"]),
        (2, ["c"], ["z"]),
    ]


def test_what_is_done_is_passed_over_and_counted_in_the_digests(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(3000)]
    reader = ChunkReader(write(tmp_path / "src", lines), None)
    chunks = reader.chunks(2900, builder())
    next(chunks)
    digests = reader.digests
    again = ChunkReader(LineInput(str(tmp_path / "src")), None)
    again.skip(2900)
    assert again.digests == digests
    (chunk,) = again.chunks(500, builder())
    assert chunk.first == 2900 and chunk.lines == lines[2900:]
    other = ChunkReader(write(tmp_path / "other", ["line 0", *lines]), None)
    other.skip(2900)
    assert other.digests != digests


@pytest.mark.parametrize("lines", [["a", "b", "c", "d"], ["a", "b"], ["a", "b", "longer"], None])
def test_a_file_must_not_change(tmp_path: Path, lines: list[str] | None) -> None:
    src = write(tmp_path / "src", ["a", "b", "c"])
    chunks = ChunkReader(src, None).chunks(1, builder())
    assert next(chunks).lines == ["a"]
    (tmp_path / "src").unlink() if lines is None else write(tmp_path / "src", lines)
    with pytest.raises(DataError, match=r"An input must not change while it is answered, but .*src has changed"):
        list(chunks)


def test_tgt_must_have_as_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = write(tmp_path / "two", ["x", "y"])
    with pytest.raises(DataError, match=r"each of the 3 inputs, but .*two has 2"):
        ChunkReader(write(tmp_path / "src", ["a", "b", "c"]), two)
    for content, what in ((b"a\nb\nc\n", "fewer"), (b"a\n", "more")):
        give(monkeypatch, content)
        with pytest.raises(DataError, match=f"but .*two has {what} lines than there are inputs"):
            read(LineInput("-"), LineInput(str(tmp_path / "two")))


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> int:
    """Put content into standard input; the end of a pipe through which more can be written."""
    reading, writing = os.pipe()
    os.write(writing, content)
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    if content.endswith(b"\n"):
        os.close(writing)
    return writing


def test_lines_of_a_stream_are_taken_as_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    writing = give(monkeypatch, b"\xef\xbb\xbfone\r\n\ntw")
    src = LineInput("-")
    assert src.count is None and src.take(10) == ["one", ""]
    os.write(writing, "o ｟newline｠\nthree\nfo".encode())
    assert src.take(1) == ["two ｟newline｠"] and src.take(10) == ["three"]
    os.write(writing, b"ur")
    os.close(writing)
    assert src.take(10) == ["four"] and src.take(10) == [] == src.take(10)


def test_a_bad_byte_is_named_before_any_work_or_where_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").write_bytes(b"one\nx\xff\n")
    with pytest.raises(DataError, match="bad:2 holds the byte 0xff at offset 5"):
        LineInput(str(tmp_path / "bad"))
    give(monkeypatch, b"one\nx\xff\n")
    with pytest.raises(DataError, match="<stdin>:2 holds the byte 0xff at offset 5"):
        read(LineInput("-"))


def test_a_named_pipe_is_a_stream(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    both = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(both, b"one\ntwo\n")
    assert LineInput(str(tmp_path / "pipe")).take(5) == ["one", "two"]
    os.close(both)


@pytest.mark.parametrize(("batch", "lines"), [((16, "sents"), 16), ((512, "tokens"), 16), ((8, "tokens"), 1)])
def test_a_chunk_has_many_batches(batch: tuple[int, str], lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert chunk_lines("seq2seq", *batch) == 64 * lines and chunk_lines("lm", *batch) == 16 * lines  # type: ignore[arg-type]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert chunk_lines("seq2seq", *batch) == 16 * 64 * lines  # type: ignore[arg-type]
