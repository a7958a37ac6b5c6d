"""Runs on two ranks with sharded weights make the checkpoints of runs on whole weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.training.train import train
from options import train_config

RANKS = """
import json, sys
import torch.distributed
from onmt_llm.config.train import TrainConfig
from onmt_llm.training.train import train

torch.distributed.init_process_group("gloo")
for options in json.load(open(sys.argv[1])):
    train(TrainConfig.model_validate(options))
torch.distributed.destroy_process_group()
"""
LM = {"architecture": {"encoder_layers": 0, "decoder_layers": 2, "norm": "rmsnorm", "position": "rotary"}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "encoder-decoder, average": {"optimizer": {"average_decay": 0.1}},
    "tied, packed, checkpointed": {
        "architecture": {**LM["architecture"], "tie_embeddings": True, "ffn_gated": True, "ffn_size": 25},
        "batching": {"packing": "pack", "packing_length": 16, "batch_type": "tokens", "batch_size": 32},
        "performance": {"use_ckpting": ["block"]},
    },
    "lora, int8": {
        **LM,
        "lora": {"lora_layers": ["q_proj", "down_proj"], "lora_rank": 2},
        "quantization": {"quant_layers": ["up_proj"], "quant_type": "int8"},
    },
    "adagrad, validated": {"optimizer": {"optim": "adagrad", "max_grad_norm": 0.1}, "run": {"valid_steps": 2}},
    "bf16": {**LM, "performance": {"model_dtype": "bf16"}},
    "pure bf16": {**LM, "performance": {"model_dtype": "bf16", "pure_bf16": True}},
}


def torchrun(folder: Path, runs: list[dict[str, Any]], *, ranks: int = 2) -> None:
    script, given = folder / "ranks.py", folder / "runs.json"
    script.write_text(RANKS)
    given.write_text(json.dumps(runs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [*command, str(script), str(given)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def written(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, the optimiser's included."""
    files = sorted(path.rglob("*.safetensors"))
    return {
        f"{file.name}/{name}": tensors.tensor(name)
        for file in files
        for tensors in [SafetensorsSet(file.parent, [file.name], listed=None)]
        for name in tensors.names()
    }


def options(task: Any, name: str, *, ranks: int = 2, shard: str = "full", **sections: Any) -> dict[str, Any]:
    devices = {"world_size": ranks, "device": "cpu", "shard": shard, **sections.get("devices", {})}
    run = {**sections.get("run", {}), "save_model": str(task.folder / name)}
    return task.config(**{**sections, "devices": devices, "run": run}).model_dump(mode="json", exclude_unset=True)


def assert_close(folder: Path, name: str, other: str, tolerance: float) -> None:
    wanted, got = written(folder / f"{name}_step_6"), written(folder / f"{other}_step_6")
    assert wanted.keys() == got.keys()
    for key, tensor in wanted.items():
        message = f"{other}, {key}: {{}}".format
        torch.testing.assert_close(got[key].float(), tensor.float(), rtol=0, atol=tolerance, msg=message)


@pytest.mark.slow
def test_a_sharded_run_makes_the_same_checkpoints(copy_task: Any) -> None:
    folder = copy_task.folder
    base = copy_task.run("base", **LM).checkpoint
    runs = []
    for number, (variant, sections) in enumerate(VARIANTS.items()):
        start = {"train_from": str(base)} if "lora" in variant else {}
        given = {**sections, "run": {**start, **sections.get("run", {})}}
        runs += [options(copy_task, f"{number}-{shard}", shard=shard, **given) for shard in ("off", "full")]
    torchrun(folder, runs)
    for number, variant in enumerate(VARIANTS):
        assert_close(folder, f"{number}-off", f"{number}-full", 2e-2 if "bf16" in variant else 1e-5)


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_another_number_of_ranks(copy_task: Any) -> None:
    folder = copy_task.folder
    # Buckets of one batch: an update then has the same examples on any number of ranks.
    batching = {"batching": {"bucket_size": 8}}
    torchrun(folder, [options(copy_task, "two", run={"accum_count": [2]}, **batching)])
    start = {"train_from": str(folder / "two_step_3")}
    run = {"accum_count": [1], **start}
    torchrun(folder, [options(copy_task, "four", ranks=4, devices={"shard_size": 2}, run=run, **batching)], ranks=4)
    train(train_config(options(copy_task, "one", ranks=1, run={"accum_count": [4], **start}, **batching)))
    assert_close(folder, "two", "four", 1e-5)
    assert_close(folder, "two", "one", 1e-5)
