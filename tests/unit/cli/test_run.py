"""Messages and exit codes when a command is interrupted or fails."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.cli.run import run
from onmt_llm.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "more memory than there is.\n"),
        (
            RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 196608 bytes."),
            "196608 bytes",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA is full. Tried to allocate 20.00 GiB."),
            "20.00 GiB",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "more memory"),
        (RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"), "more memory"),
    ],
)
def test_a_lack_of_memory_is_one_sentence(error: Exception, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: Any) -> int:
        raise error

    assert run(work, []) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files", "model"),
        RuntimeError("unable to open file <model> in read-only mode: Too many open files (24)"),
    ],
)
def test_too_many_open_files_are_one_sentence(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: Any) -> int:
        raise error

    assert run(work, []) == 1
    assert "ulimit -n" in capsys.readouterr().err


def test_what_the_file_system_refuses_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: Any) -> int:
        return int(Path("/" + "x" * 300, "config.yaml").is_file())

    assert run(work, []) == 4
    assert "File name too long.\n" in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden() -> None:
    def work(_: Any) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError):
        run(work, [])


@pytest.mark.parametrize(
    ("message", "shown"),
    [("It says: no.", "It says: no."), ("It says: no..", "It says: no."), ("And so on...", "And so on...")],
)
def test_the_words_of_another_program_end_with_one_full_stop(message: str, shown: str) -> None:
    assert str(ConfigError(message)) == shown
