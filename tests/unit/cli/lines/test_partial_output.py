"""Outputs that grow as `.partial`: what is certain after an interruption, and what is never replaced."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.cli.lines.partial_output import GrowingOutput, PartialFile, StreamOutput, open_output
from onmt_llm.errors import CheckpointError, ConfigError, OnmtLlmError

ORIGIN = {"beam_size": 1, "model": ["content 1"]}


class Killed(BaseException):
    """Stands for anything that ends the process."""


def opened(path: Path, *, resume: bool = True, **changes: Any) -> GrowingOutput:
    return open_output(str(path), {**ORIGIN, **changes}, resume=resume)


def interrupted(path: Path, *chunks: str) -> Path:
    """What is left after these chunks, and a part of another; its path."""
    with pytest.raises(Killed), opened(path, resume=False) as output:
        for number, chunk in enumerate(chunks, 1):
            output.add(chunk, {"chunks": number})
        raise Killed
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("a") as file:
        file.write("half a li")
    return partial


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out"
    with opened(path) as output:
        for chunk in ("eins\n", "zwei\n"):
            output.add(chunk, {})
            assert names(path.parent) == ["out.partial", "out.partial.json"]
    assert names(path.parent) == ["out"] and path.read_text() == "eins\nzwei\n"


def test_without_chunks_the_output_is_empty(tmp_path: Path) -> None:
    with opened(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"] and not (tmp_path / "out").read_bytes()


def test_it_goes_on_behind_the_last_chunk(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("an earlier result\n")
    path.chmod(0o600)
    interrupted(path, "eins\n", "zwei\n")
    assert path.read_text() == "an earlier result\n"
    with opened(path) as output:
        assert output.state == {"chunks": 2}
        output.add("drei\n", {"chunks": 3})
    assert path.read_text() == "eins\nzwei\ndrei\n" and names(tmp_path) == ["out"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_is_behind_costs_one_chunk(tmp_path: Path) -> None:
    path = tmp_path / "out"
    interrupted(path, "eins\n")
    record = (tmp_path / "out.partial.json").read_text()
    with pytest.raises(Killed), opened(path) as output:
        output.add("zwei\n", {"chunks": 2})
        raise Killed
    (tmp_path / "out.partial.json").write_text(record)  # killed between the two writes
    with opened(path) as output:
        assert output.state == {"chunks": 1}
        output.add("zwei\n", {})
    assert path.read_text() == "eins\nzwei\n"


def test_resume_false_starts_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", "eins\n")
    with opened(tmp_path / "out", resume=False, beam_size=5) as output:
        assert output.state == {}
        output.add("neu\n", {})
    assert (tmp_path / "out").read_text() == "neu\n"


def test_nothing_is_left_of_a_run_that_has_done_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed), opened(tmp_path / "out"):
        raise Killed
    assert names(tmp_path) == []


def test_another_origin_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    partial = interrupted(tmp_path / "out", "eins\n")
    before = partial.read_bytes()
    sentence = "'beam_size' was 1 for them and is 5 now"
    for changes in ({"beam_size": 5}, {"beam_size": 5, "model": ["content 2"]}):
        with pytest.raises(ConfigError, match=sentence) as caught, opened(tmp_path / "out", **changes):
            pass
        assert caught.value.hint is not None and "-resume false" in caught.value.hint
    with pytest.raises(ConfigError, match="'later' was None for them and is 1 now"), opened(tmp_path / "out", later=1):
        pass
    assert partial.read_bytes() == before


@pytest.mark.parametrize("content", ["eins\nzwei", "Eins\nzwei\n", ""])
def test_answers_that_have_changed_are_not_continued(tmp_path: Path, content: str) -> None:
    interrupted(tmp_path / "out", "eins\n", "zwei\n").write_text(content)
    if content:
        with pytest.raises(CheckpointError, match="has changed since"), opened(tmp_path / "out"):
            pass
    else:
        with opened(tmp_path / "out") as output:
            assert output.state == {}


@pytest.mark.parametrize("record", [None, "{}", "no JSON", "[]"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_file_of_another_program_is_never_replaced(tmp_path: Path, record: str | None, resume: bool) -> None:
    (tmp_path / "out.partial").write_text("somebody's work")
    if record is not None:
        (tmp_path / "out.partial.json").write_text(record)
    with pytest.raises(CheckpointError, match="must be what an interrupted command has left"):
        opened(tmp_path / "out", resume=resume).__enter__()
    assert (tmp_path / "out.partial").read_text() == "somebody's work"


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with opened(tmp_path / "out") as output:
        output.add("eins\n", {})
        with pytest.raises(CheckpointError, match="Another process is writing"), opened(tmp_path / "out"):
            pass
    assert (tmp_path / "out").read_text() == "eins\n"


def test_a_symlink_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with opened(tmp_path / "link") as output:
        output.add("eins\n", {})
        assert names(tmp_path / "real") == ["out.partial", "out.partial.json"]
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "out").read_text() == "eins\n"


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OnmtLlmError, match=r"Writing .*file/out failed: File exists"), opened(tmp_path / "file/out"):
        pass
    with (
        pytest.raises(OnmtLlmError, match="Writing /dev/full failed: No space left"),
        opened(Path("/dev/full")) as output,
    ):
        output.add("eins\n", {})


def test_a_full_disk_keeps_the_chunks_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(CheckpointError, match="No space left"), opened(tmp_path / "out") as output:
        output.add("eins\n", {"chunks": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            output.add("zwei\n", {"chunks": 2})
    with opened(tmp_path / "out") as output:
        assert output.state == {"chunks": 1}
    assert (tmp_path / "out").read_text() == "eins\n"


def test_streams_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    with open_output("-", ORIGIN, resume=True) as output:
        assert isinstance(output, StreamOutput)
        output.add("eins\n", {})
        assert shown.getvalue() == "eins\n"
    assert not shown.closed
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with opened(pipe) as output:
        output.add("eins\n", {})
        assert os.read(reader, 100) == b"eins\n"
    os.close(reader)
    assert names(tmp_path) == ["pipe"]


def test_the_record_can_be_read_by_a_person(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", "größe\n")
    record = json.loads((tmp_path / "out.partial.json").read_text(encoding="utf-8"))
    assert record["bytes"] == len("größe\n".encode()) and record["origin"] == ORIGIN
    assert isinstance(open_output(str(tmp_path / "out"), ORIGIN, resume=True), PartialFile)
