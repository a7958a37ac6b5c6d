"""Atomic writes: files are complete or not there, links keep pointing, devices stay devices."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from onmt_llm.atomic import AtomicDirectory, atomic_file, replacing, write_failed, write_text
from onmt_llm.errors import CheckpointError


def test_a_file_is_there_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new/answers.txt"
    with atomic_file(path) as place:
        place.write_text("one\n")
        assert not path.exists() and place.suffix == ".txt"
    assert path.read_text() == "one\n"
    path.chmod(0o600)
    with pytest.raises(RuntimeError), atomic_file(path) as place:
        place.write_text("half")
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as place:
        place.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one\n"
    write_text(path, "two\r\n")
    assert path.read_bytes() == b"two\r\n" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["answers.txt"]


def test_a_symlink_keeps_pointing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("real.txt", "missing.txt"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(Path("there") / name)
    (tmp_path / "there/real.txt").write_text("old")
    for name in ("real.txt", "missing.txt"):
        write_text(tmp_path / f"link to {name}", "new")
        assert (tmp_path / f"link to {name}").is_symlink() and (tmp_path / "there" / name).read_text() == "new"
    (tmp_path / "model").symlink_to("there/model")
    for text in ("1", "2"):
        with AtomicDirectory(tmp_path / "model", overwrite=True) as output:
            output.add_text("config.yaml", text)
        assert (tmp_path / "model").is_symlink() and (tmp_path / "there/model/config.yaml").read_text() == text
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["missing.txt", "model", "real.txt"]


def test_another_name_of_the_file_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_text(tmp_path / "b", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Writing /dev/full failed: No space left on device"):
        write_text("/dev/full", "x")
    write_text("/dev/null", "x")
    assert all(stat.S_ISCHR(os.stat(device).st_mode) for device in ("/dev/full", "/dev/null"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"] and stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_what_may_not_be_written_to_is_not_replaced(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write to any file")
    file = tmp_path / "kept.txt"
    file.write_text("kept")
    file.chmod(0o400)
    with pytest.raises(CheckpointError, match=r"Writing .*kept\.txt failed: Permission denied"):
        write_text(file, "new")
    assert file.read_text() == "kept"


def test_the_file_to_blame_is_named_and_room_is_spoken_of_where_it_is_lacking(tmp_path: Path) -> None:
    missing = tmp_path / "elsewhere/tokenizer.model"
    with pytest.raises(CheckpointError) as caught, AtomicDirectory(tmp_path / "model") as output:
        output.add_file(missing, "tokenizer.model")
    assert str(missing) in caught.value.message and "bytes" not in caught.value.message
    assert not list(tmp_path.iterdir())
    full = write_failed(tmp_path / "model", OSError(errno.ENOSPC, "No space left on device", str(missing)))
    assert "bytes are free" in full.message and full.hint == "make room" and str(missing) not in full.message


def test_a_file_that_another_function_writes_into_the_directory_is_not_blamed(tmp_path: Path) -> None:
    def fail(file: Path) -> None:
        with atomic_file(file):
            raise OSError(errno.EFBIG, "File too large")

    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    with pytest.raises(CheckpointError) as caught, AtomicDirectory(model) as output, output.translated_errors():
        fail(output.directory / "model.gguf")
    assert caught.value.message == f"Writing {model} failed: File too large."
    with pytest.raises(CheckpointError) as caught, AtomicDirectory(model) as output, output.translated_errors():
        fail(elsewhere)
    assert caught.value.message == f"Writing {elsewhere} failed: File too large."
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_do_not_share_an_unfinished_one(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "missing/index") as unfinished:
        unfinished.write_text("")
