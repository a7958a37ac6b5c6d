"""`onmt_llm_translate`, killed at any moment and run again: the same file, and at most one chunk is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from onmt_llm.releasing import release

LINES, CHUNK = 7, 2

# What takes long to import is imported once; every command is a fork of this process. A command is killed before its
# n-th call that changes the disk, so the numbers from 1 on are all the moments at which it can die.
FORKER = f"""
import os, signal, sys
import ctranslate2, torch
import onmt_llm.generate.torch.loading
from onmt_llm.cli import translate

calls = 0
def killing(function, fatal):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

def counting(answer):
    def call(engine, chunk, *rest):
        found = answer(engine, chunk, *rest)
        with open("answered", "a") as file:
            file.write(f"{{len(chunk.lines)}}\\n")
        return found
    return call

translate.chunk_lines = lambda *_: {CHUNK}
translate.answer_chunk = counting(translate.answer_chunk)
for line in sys.stdin:
    fatal, *words = line.split()
    child = os.fork()
    if child == 0:
        for name in ("fsync", "replace", "unlink", "open"):
            setattr(os, name, killing(getattr(os, name), int(fatal)))
        os._exit(translate.main(words))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Runs commands in a folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self._process = folder, process

    def run(self, words: str, *, kill_at: int = 0) -> int:
        """The exit code, or minus the signal, of a translation that is killed before its n-th call."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{kill_at} {words}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def answered(self) -> int:
        """Lines that were answered since the last call, by commands that have ended or were killed."""
        file = self.folder / "answered"
        count = sum(map(int, file.read_text().split())) if file.exists() else 0
        file.unlink(missing_ok=True)
        return count

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("translation")
    checkpoint = tiny.write_checkpoint(folder / "torch", tiny.seq2seq(), scale=0.5)
    release(checkpoint, folder / "ct2", text="w1 w2 w3")
    tiny.write_vocab(folder / "src", ["w1 w2", "", *(f"w{i} w{i + 1} w{i + 2}" for i in range(LINES - 2))])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    yield Commands(folder, process)
    process.stdin.close()  # type: ignore[union-attr]
    process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "words",
    [
        "-model torch -random_sampling_topk 0 -seed 3 -n_best 2 -with_score",
        "-model ct2 -beam_size 2 -with_score",
    ],
    ids=["torch sampled", "ct2 beam"],
)
def test_killed_at_any_moment(commands: Commands, words: str) -> None:
    folder, whole = commands.folder, f"-device cpu -threads 1 -batch_size 1 -max_length 6 -src src {words} -output"
    assert commands.run(f"{whole} whole") == 0 and commands.answered() == LINES
    expected = (folder / "whole").read_text()
    for moment in range(1, 200):
        (folder / "out").write_text("an earlier result\n")
        code = commands.run(f"{whole} out", kill_at=moment)
        if code == 0:
            assert commands.answered() == LINES
            break
        assert code == -signal.SIGKILL, commands.stderr()
        left = (folder / "out").read_text()
        assert left in ("an earlier result\n", expected)
        assert commands.run(f"{whole} out") == 0, commands.stderr()
        assert (folder / "out").read_text() == expected, moment
        most = 2 * LINES if left == expected else LINES + CHUNK
        assert LINES <= commands.answered() <= most, moment
    assert moment > 20
    assert [path.name for path in folder.iterdir() if "out" in path.name] == ["out"]
