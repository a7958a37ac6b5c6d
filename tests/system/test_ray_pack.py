"""`onmt_llm_data pack -engine ray`: the shards of `-engine process`, also when a worker is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from onmt_llm.cli.data import main

ray = pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
WORDS = [f"w{number}" for number in range(40)]
FILES, ROWS = 8, 3000


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight Parquet files of several row groups, and a Ray of this machine."""
    rng = random.Random(1)
    for number in range(FILES):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 30))) for _ in range(ROWS)]
        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / f"part{number}.parquet", row_group_size=700)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    web = {"path_table": "part*.parquet"}
    corpora = {"web": web, "chosen": {**web, "unique_by": ["text"], "sample": 5000}}
    run = {"data": corpora, "src_vocab": "vocab.txt", "skip_empty_level": "silent"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "run.yaml"


def pack(*words: str, folder: str) -> dict[str, bytes]:
    """The files of the pack, by name."""
    assert main(["pack", "-config", "run.yaml", "-save_data", folder, *words]) == 0
    packed = Path(folder) / "packed"
    return {str(file.relative_to(packed)): file.read_bytes() for file in packed.glob("*/*")}


def kill_a_worker(killed: list[int]) -> None:
    """Kill the first worker of Ray that works on a part."""
    while not killed:
        for process in psutil.Process().children(recursive=True):
            try:
                if "ray::work_on" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            except (psutil.Error, ProcessLookupError):
                continue  # it has ended
        time.sleep(0.02)


def test_the_shards_are_those_of_processes_also_after_a_worker_is_killed(config: Path) -> None:
    wanted = pack(folder="process")
    counts = [json.loads(wanted[name])["counts"] for name in wanted if name.endswith("index.json")]
    assert [each["read"] for each in counts] == [FILES * ROWS] * 2 and counts[0]["kept"] != counts[1]["kept"]
    assert pack("-num_threads", "2", folder="two") == wanted
    ray.init(num_cpus=2, include_dashboard=False)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(killed,), daemon=True)
    try:
        assert pack("-engine", "ray", folder="ray") == wanted
        killer.start()
        assert pack("-engine", "ray", folder="killed") == wanted
        assert killed
        Path("part3.parquet").write_bytes(Path("part3.parquet").read_bytes()[:-3000])
        assert main(["pack", "-config", "run.yaml", "-save_data", "damaged", "-engine", "ray"]) == 3
    finally:
        ray.shutdown()
