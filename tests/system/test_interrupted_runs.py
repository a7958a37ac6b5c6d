"""Runs that are killed, stopped or out of disk space end like uninterrupted ones, given `train_from: auto`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.training.run_folder import check_intact, checkpoints

WORDS = [f"w{i}" for i in range(12)]
STEPS, SAVE_EVERY = 60, 3

# torch is imported once; every run is a fork of this process.
FORKER = """
import os, resource, sys
from onmt_llm.cli.train import main
from onmt_llm.training import train
for line in sys.stdin:
    limit, *words = line.split()
    child = os.fork()
    if child == 0:
        if limit != "-":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        os._exit(main(words))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Runs of one configuration, each in a folder of its own."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self._errors = folder / "stderr.txt"
        self._process = process

    def start(self, prefix: Path, *, limit: int | None = None, **options: Any) -> int:
        """Start or resume the run `prefix`; its process id."""
        (self.folder / "run.yaml").write_text(yaml.safe_dump({**self._options(), "save_model": str(prefix), **options}))
        assert self._process.stdin is not None
        self._process.stdin.write(f"{limit or '-'} -config {self.folder / 'run.yaml'}\n")
        self._process.stdin.flush()
        return self._line()

    def wait(self) -> int:
        """Exit code of what was started, or minus its signal."""
        return self._line()

    def run(self, prefix: Path, **options: Any) -> int:
        self.start(prefix, **options)
        return self.wait()

    def stderr(self) -> str:
        """What all runs so far have said."""
        return self._errors.read_text()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def _options(self) -> dict[str, Any]:
        data = {
            name: {"path_src": str(self.folder / f"{name}.src"), "path_tgt": str(self.folder / f"{name}.tgt")}
            for name in ("train", "valid")
        }
        return {
            "data": data,
            "src_vocab": str(self.folder / "vocab.txt"),
            "share_vocab": True,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "hidden_size": 16,
            "heads": 2,
            "ffn_size": 24,
            "batch_size": 8,
            "bucket_size": 64,
            "accum_count": 2,
            "dropout": 0.1,
            "learning_rate": 0.01,
            "decay_method": "cosine",
            "warmup_steps": 10,
            "average_decay": 0.01,
            "early_stopping": 100,
            "train_from": "auto",
            "train_steps": STEPS,
            "save_checkpoint_steps": SAVE_EVERY,
            "valid_steps": 7,
            "report_every": 4,
            "seed": 3,
            "threads": 1,
            "device": "cpu",
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    rng = random.Random(1)
    for name, count in (("train", 500), ("valid", 10)):
        lines = "".join(" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) + "\n" for _ in range(count))
        for side in ("src", "tgt"):
            (folder / f"{name}.{side}").write_text(lines)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with (
        open(folder / "stderr.txt", "w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", FORKER], stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment
        ) as process,
    ):
        yield Runs(folder, process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> Path:
    prefix = runs.folder / "undisturbed/toy"
    assert runs.run(prefix) == 0
    return prefix


def content(prefix: Path, steps: int) -> dict[str, Any]:
    """Everything that a run of so many steps writes, except times."""
    last = Path(f"{prefix}_step_{steps}")
    files = {
        f"{folder.name}/{name}": (folder / name).read_bytes()
        for folder in (last, last.with_name(f"{last.name}_ema"))
        for name in ("config.yaml", "vocab.txt", "model.safetensors", "train_state/optimizer.safetensors")
        if (folder / name).exists()
    }
    state = json.loads((last / "train_state/state.json").read_text())
    state["progress"]["report"].pop("elapsed")
    rows = [json.loads(line) for line in Path(f"{prefix}_metrics.jsonl").read_text().splitlines()]
    for row in rows:
        measured = ("time", "elapsed", "data_wait", "peak_rss_mib")
        for key in [key for key in row if key in measured or key.endswith("per_second")]:
            del row[key]
    state["options"].pop("keep_checkpoint")
    assert len(files) == 7 and len(rows) == steps // 4 + steps // 7 + 1
    return {"files": files, "state": state, "rows": rows}


def check_complete(prefix: Path) -> list[int]:
    """Every checkpoint under its name is as it was written; their steps."""
    found = checkpoints(str(prefix))
    for path in found.values():
        check_intact(path)
    return list(found)


def kill_somewhere(runs: Runs, prefix: Path, rng: random.Random, number: signal.Signals, **options: Any) -> int:
    """Start or resume a run, and send it a signal at a random moment of its next checkpoints; its exit code."""
    process = runs.start(prefix, **options)
    goal = max(checkpoints(str(prefix)), default=0) + SAVE_EVERY * rng.randint(0, 3)
    while is_running(process) and max(checkpoints(str(prefix)), default=0) < goal:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.2))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
    return runs.wait()


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def rehearse(runs: Runs, prefix: Path, kills: int, **options: Any) -> list[int]:
    """Kill a run that often, then let it end; the newest step after each kill."""
    rng = random.Random(int(os.environ.get("ONMT_LLM_SEED", kills)))
    reached = [0]
    for _ in range(kills):
        assert kill_somewhere(runs, prefix, rng, signal.SIGKILL, **options) in (-signal.SIGKILL, 0)
        reached.append(max(check_complete(prefix), default=0))
        assert reached[-1] >= reached[-2]
    assert runs.run(prefix, **options) == 0
    assert not [path for path in prefix.parent.iterdir() if path.name.startswith(".")]
    return reached


def test_a_run_that_is_killed_again_and_again(runs: Runs, undisturbed: Path) -> None:
    prefix = runs.folder / "killed/toy"
    reached = rehearse(runs, prefix, kills=3, keep_checkpoint=4)
    assert 0 < reached[-1] < STEPS, reached
    assert content(prefix, STEPS) == content(undisturbed, STEPS)
    assert check_complete(prefix) == [STEPS - 3 * SAVE_EVERY, STEPS - 2 * SAVE_EVERY, STEPS - SAVE_EVERY, STEPS]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("save_async", [True, False])
def test_twenty_five_kills(runs: Runs, save_async: bool) -> None:
    steps = 400  # more than a fast machine makes between as many kills
    options = {"train_steps": steps, "keep_checkpoint": 4, "save_async": save_async}
    whole, killed = (runs.folder / f"{name}_{save_async}/toy" for name in ("whole", "often"))
    assert runs.run(whole, **options) == 0
    reached = rehearse(runs, killed, kills=25, **options)
    assert len(set(reached)) > 10 and reached[-1] < steps, reached
    assert content(killed, steps) == content(whole, steps)


def ranks_of(torchrun: int) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    found = {}
    for process in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            found |= {int(line[5:]): int(process) for line in lines if line.startswith(b"RANK=")}
    return found


@contextlib.contextmanager
def torchrun(runs: Runs, prefix: Path, *, restarts: int = 0, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A run on two ranks, which adds to `ranks.log`."""
    file = runs.folder / "ranks.yaml"
    file.write_text(yaml.safe_dump({**runs._options(), "save_model": str(prefix), "shard": "full", **options}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max-restarts", str(restarts), "-m", "onmt_llm.cli.train", "-config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(runs.folder / "ranks.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)


def weights(prefix: Path, step: int) -> dict[str, bytes]:
    """The files with tensors of a checkpoint and of the averages beside it."""
    last = Path(f"{prefix}_step_{step}")
    files = [file for folder in (last, last.with_name(f"{last.name}_ema")) for file in folder.rglob("*.safetensors")]
    return {str(file.relative_to(prefix.parent)): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shards", ["off", "on"])
def test_ranks_that_are_killed_are_named_and_the_run_goes_on_by_itself(runs: Runs, shards: str) -> None:
    kills, rng, steps = 5, random.Random(1), 2 * STEPS  # on a busy machine a kill comes several checkpoints late
    options = {"checkpoint_shards": shards, "keep_checkpoint": 4, "train_steps": steps}
    whole, killed = (runs.folder / f"{name}_{shards}/toy" for name in ("ranks", "killed_ranks"))
    with torchrun(runs, whole, **options) as process:
        assert process.wait() == 0
    with torchrun(runs, killed, restarts=kills, **options) as process:
        for _ in range(kills):
            goal = max(checkpoints(str(killed)), default=0) + SAVE_EVERY * rng.randint(1, 3)
            wait_for(process, lambda goal=goal: max(checkpoints(str(killed)), default=0) >= goal)
            time.sleep(rng.uniform(0, 0.2))
            ranks = ranks_of(process.pid)
            os.kill(ranks[rng.randrange(2)], signal.SIGKILL)
            # Until then a checkpoint that was being written can still appear.
            wait_for(process, lambda ranks=ranks: not set(ranks.values()) & set(ranks_of(process.pid).values()))
        assert process.wait() == 0
    log = (runs.folder / "ranks.log").read_text()
    assert len(re.findall(r"rank [01] \(host .*, process \d+\) died in step \d+\.", log)) == kills, log
    assert "Traceback" not in log
    assert check_complete(killed) == [steps - behind * SAVE_EVERY for behind in (3, 2, 1, 0)]
    assert not [path for path in killed.parent.iterdir() if path.name.startswith(".")]
    assert weights(killed, steps) == weights(whole, steps)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ranks_with_sharded_weights_obey_signals(runs: Runs) -> None:
    options = {"checkpoint_shards": "on", "train_steps": 200, "save_checkpoint_steps": 200}
    whole, told = (runs.folder / f"{name}/toy" for name in ("obedient", "told_ranks"))
    with torchrun(runs, whole, **options) as process:
        assert process.wait() == 0
    with torchrun(runs, told, **options) as process:
        rows = Path(f"{told}_metrics.jsonl")
        wait_for(process, lambda: rows.is_file() and bool(rows.read_text()))
        os.kill(ranks_of(process.pid)[1], signal.SIGUSR1)
        wait_for(process, lambda: len(checkpoints(str(told))) == 1)
        process.terminate()
        assert process.wait() != 0
    assert re.search("Stopped by (SIGTERM|another process) after step", (runs.folder / "ranks.log").read_text())
    saved, stopped = check_complete(told)
    assert saved < stopped < 200
    with torchrun(runs, told, **options) as process:
        assert process.wait() == 0
    assert weights(told, 200) == weights(whole, 200)


def test_a_run_that_is_told_to_stop_says_where_and_goes_on(runs: Runs, undisturbed: Path) -> None:
    prefix = runs.folder / "told/toy"
    assert kill_somewhere(runs, prefix, random.Random(5), signal.SIGTERM) == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after step" in runs.stderr()
    assert runs.run(prefix) == 0
    assert content(prefix, STEPS) == content(undisturbed, STEPS)
    assert runs.run(prefix) == 0
    assert f"Nothing to do: {prefix}_step_{STEPS} is of step {STEPS}" in runs.stderr()


def tmpfs(folder: Path, options: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [("size=3m,nr_inodes=900", "bytes on the disk, but"), ("size=30m,nr_inodes=60", "No space left on device")],
    ids=["asked before", "found while writing"],
)
def test_a_full_disk(runs: Runs, undisturbed: Path, limits: str, sentence: str) -> None:
    disk = runs.folder / limits.partition(",")[0]
    if not tmpfs(disk, limits):
        pytest.skip("no file system may be mounted here")
    try:
        prefix = disk / "toy"
        assert runs.run(prefix) == 4
        assert sentence in runs.stderr() and "make room, and resume with -train_from auto" in runs.stderr()
        steps = check_complete(prefix)
        assert 2 < len(steps) < STEPS // SAVE_EVERY
        assert runs.run(prefix) == 4
        assert check_complete(prefix) == steps
        subprocess.run(["mount", "-o", "remount,size=30m,nr_inodes=2000", str(disk)], check=True)
        assert runs.run(prefix) == 0
        assert content(prefix, STEPS) == content(undisturbed, STEPS)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_files_that_may_not_grow(runs: Runs, undisturbed: Path) -> None:
    prefix = runs.folder / "limited/toy"
    kill_somewhere(runs, prefix, random.Random(2), signal.SIGKILL)
    steps = check_complete(prefix)
    runs.start(prefix, limit=60_000)
    assert runs.wait() == 4
    assert "File too large" in runs.stderr()
    assert check_complete(prefix) == steps
    assert runs.run(prefix) == 0
    assert content(prefix, STEPS) == content(undisturbed, STEPS)
