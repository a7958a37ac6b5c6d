"""The memory that `-dry_run` estimates for a process with a part of the weights is what it needs.

torchrun runs this very file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.train import TrainConfig
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.run import attempt
from onmt_llm.training.train import train

LARGE = {
    **{"encoder_layers": 0, "decoder_layers": 8, "hidden_size": 512, "heads": 8, "ffn_size": 2048, "ffn_gated": True},
    **{"norm": "rmsnorm", "position": "rotary"},
}


def main(given: Path) -> None:
    """What each rank does: a run, and the largest memory since the model was begun."""
    options = json.loads(given.read_text())
    build, ended, figures = attempt.build_components, threading.Event(), {"before": 0, "peak": 0}

    def watch() -> None:
        while not ended.wait(0.002):
            figures["peak"] = max(figures["peak"], anonymous())

    watcher = threading.Thread(target=watch, daemon=True)

    def watched(*args: Any, **named: Any) -> Any:
        figures["before"] = anonymous()
        watcher.start()
        return build(*args, **named)

    attempt.build_components = watched
    train(TrainConfig.model_validate(options))
    ended.set()
    Path(f"{given}_{os.environ['RANK']}").write_text(str(figures["peak"] - figures["before"]))


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_process_needs_what_was_estimated(copy_task: Any) -> None:
    devices = {"world_size": 2, "device": "cpu", "shard": "full"}
    batching = {"batch_type": "tokens", "batch_size": 1024, "packing": "wrap", "packing_length": 256}
    run = {"train_steps": 2, "keep_checkpoint": 0, "model_task": "lm"}
    given: dict[str, Any] = {
        "architecture": LARGE,
        "vocabulary": {"vocab_size_multiple": 8000},
        "devices": devices,
        "batching": {**batching, "bucket_size": 400},
        "run": run,
    }
    config = copy_task.config(**given)
    file, tests = copy_task.folder / "run.json", Path(__file__).parents[3]
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    # Otherwise malloc keeps what was freed, in pieces of many sizes.
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", **malloc}
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, env={**os.environ, **paths})
    assert done.returncode == 0, done.stderr[-3000:]
    needed = max(int(Path(f"{file}_{rank}").read_text()) for rank in (0, 1))
    assert plan(config).memory.peak == pytest.approx(needed, rel=0.15)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
