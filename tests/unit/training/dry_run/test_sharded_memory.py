"""The memory that `-dry_run` estimates for a process with a part of the weights is what it needs.

torchrun runs this very file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.train import TrainConfig
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.process.host_memory import peak_memory
from onmt_llm.training.train import train

LARGE = {
    **{"encoder_layers": 0, "decoder_layers": 8, "hidden_size": 512, "heads": 8, "ffn_size": 2048, "ffn_gated": True},
    **{"norm": "rmsnorm", "position": "rotary"},
}


def main(given: Path) -> None:
    """What each rank does: a run. Without ranks: its plan. Either writes the bytes at the peak."""
    config = TrainConfig.model_validate_json(given.read_text())
    rank = os.environ.get("RANK", "plan")
    if rank != "plan":
        train(config)
    needed = plan(config).peak if rank == "plan" else peak_memory("cpu")["peak_rss"]
    Path(f"{given}_{rank}").write_text(str(needed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("performance", [{}, {"model_dtype": "bf16", "use_ckpting": ["block"]}])
def test_a_process_needs_what_was_estimated(copy_task: Any, performance: dict[str, Any]) -> None:
    devices = {"world_size": 2, "device": "cpu", "shard": "full"}
    batching = {"batch_type": "tokens", "batch_size": 1024, "packing": "wrap", "packing_length": 256}
    given: dict[str, Any] = {
        "architecture": LARGE,
        "vocabulary": {"vocab_size_multiple": 8000},
        "devices": devices,
        "batching": {**batching, "bucket_size": 400},
        "run": {"train_steps": 2, "keep_checkpoint": 0, "model_task": "lm"},
        "performance": performance,
    }
    config = copy_task.config(**given)
    file, tests = copy_task.folder / "run.json", Path(__file__).parents[3]
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    # Otherwise malloc keeps what was freed, in pieces of many sizes.
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", **malloc}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for options in ([], torchrun):
        command = [sys.executable, *options, __file__, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths})
        assert done.returncode == 0, done.stderr[-3000:]
    estimated, *needed = (int(Path(f"{file}_{name}").read_text()) for name in ("plan", "0", "1"))
    assert estimated == pytest.approx(max(needed), rel=0.15)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
