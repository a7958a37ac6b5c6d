"""Ranks and devices; two gloo processes compute the update of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.training.process import dist

TWO_RANKS = """
import torch
from torch import nn
from onmt_llm.training.process import dist

dist.BUCKET_ELEMENTS = 7
world = dist.open_world("cpu", 2)
torch.manual_seed(world.rank)
model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(True)
world.share_parameters(model)
torch.manual_seed(9)
x = torch.randn(2, 3)
model(x[world.rank]).sum().backward()
if world.rank:
    model[0].bias.grad = None
world.sum_gradients(list(model.parameters()))
mine = torch.cat([p.grad.flatten() for p in model.parameters()])

alone = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
alone.load_state_dict(model.state_dict())
alone(x[0]).sum().backward()
bias = alone[0].bias.grad.clone()
alone(x[1]).sum().backward()
alone[0].bias.grad = bias
torch.testing.assert_close(mine, torch.cat([p.grad.flatten() for p in alone.parameters()]))

texts = world.gather({"text": "x" * world.rank})
assert texts == [{"text": ""}, {"text": "x"}]
assert world.any(world.rank == 1) and not world.any(False)
assert world.sum(torch.tensor(2.0)) == 4.0
world.barrier()
world.close()
"""


def test_two_processes_sum_gradients_and_share_what_they_know(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    root = Path(dist.__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_process_needs_no_process_group() -> None:
    world = dist.open_world("cpu")
    assert (world.rank, world.size, world.is_main, world.device) == (0, 1, True, torch.device("cpu"))
    parameter = nn.Parameter(torch.zeros(2))
    world.sum_gradients([parameter])
    assert parameter.grad is None and world.gather({"a": 1}) == [{"a": 1}]


def test_world_size_zero_is_the_cpu() -> None:
    assert dist.open_world("auto", 0).device.type == "cpu"


def test_several_processes_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UnsupportedError, match=r"(?s)world_size 3 needs 3 processes.*torchrun --nproc_per_node 3"):
        dist.open_world("cpu", 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun started, 2, but is 3"):
        dist.open_world("cpu", 3)
