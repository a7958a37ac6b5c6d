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

from onmt_llm.checkpoint.consolidate import consolidate
from onmt_llm.checkpoint.directory import OPTIMIZER_FILE, find_damage
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.checkpoint.files.shards import ShardSet
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.training.run_folder import ema_path
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
    "expanded": {**LM, "expansion": {"expand_every": 2, "expand_divergence": 1.0}},
    "adagrad, validated": {
        "optimizer": {"optim": "adagrad", "max_grad_norm": 0.1, "average_decay": 0.1},
        "validation": {"valid_metrics": ["CHRF"], "valid_beam_size": 2},
        "run": {"valid_steps": 2},
    },
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
    """All tensors of a checkpoint, the optimiser's included, whether whole or in parts."""
    state = path / "train_state"
    optimizer = ShardSet(state / "shards") if (state / "shards").is_dir() else SafetensorsSet(state, [OPTIMIZER_FILE])
    readers: dict[str, Any] = {"": Checkpoint.open(path), "optimizer ": optimizer}
    if ema_path(path).is_dir():
        readers["average "] = Checkpoint.open(ema_path(path))
    return {f"{kind}{name}": reader.tensor(name) for kind, reader in readers.items() for name in reader.names()}


def scores(file: Path) -> list[float]:
    rows = map(json.loads, file.read_text().splitlines())
    return [row["CHRF"] for row in rows if "CHRF" in row]


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
    for number, sections in enumerate(VARIANTS.values()):
        start = {"train_from": str(base)} if sections.keys() & {"lora", "expansion"} else {}
        given = {**sections, "run": {**start, **sections.get("run", {})}}
        runs += [options(copy_task, f"{number}-{shard}", shard=shard, **given) for shard in ("off", "full")]
    torchrun(folder, runs)
    for number in range(len(VARIANTS)):
        assert_close(folder, f"{number}-off", f"{number}-full", 1e-5)
    validated = list(VARIANTS).index("adagrad, validated")
    chrf = [scores(folder / f"{validated}-{shard}_metrics.jsonl") for shard in ("off", "full")]
    assert len(chrf[0]) == 3 and any(chrf[0]) and chrf[0] == chrf[1]


@pytest.mark.slow
def test_each_process_writes_its_part_of_the_same_checkpoint(copy_task: Any) -> None:
    folder = copy_task.folder
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "average": ({"checkpoint_shards": "on"}, {"optimizer": {"average_decay": 0.1}}),
        "tied": ({"checkpoint_shards": "on", "save_async": False}, VARIANTS["tied, packed, checkpointed"]),
        "large": ({"checkpoint_shards_above": "1KB"}, {}),
        "small": ({}, {}),
    }
    runs = []
    for kind, (safety, sections) in kinds.items():
        runs.append(options(copy_task, f"{kind}-whole", **sections, safety={"checkpoint_shards": "off"}))
        runs.append(options(copy_task, f"{kind}-parts", **sections, safety=safety))
    torchrun(folder, runs)
    for kind in kinds:
        path = folder / f"{kind}-parts_step_6"
        assert (path / "shards/00001.safetensors").is_file() == (kind != "small")
        assert find_damage(path, thorough=True) == []
        assert_close(folder, f"{kind}-whole", f"{kind}-parts", 0.0)
        whole = folder / f"{kind}-whole_step_6"
        consolidate(path, folder / kind)
        for file in ("config.yaml", "train_state/optimizer.safetensors"):
            assert (folder / kind / file).read_bytes() == (whole / file).read_bytes()
        assert Checkpoint.open(folder / kind).fingerprint == Checkpoint.open(whole).fingerprint


@pytest.mark.slow
def test_parts_of_blocks_that_ranks_compute_together(copy_task: Any) -> None:
    common: dict[str, Any] = {"ranks": 4, "devices": {"tensor_parallel": 2}, "optimizer": {"average_decay": 0.1}}
    runs = {"whole": ("off", {}), "parts": ("on", {}), "again": ("on", {"train_from": "parts_step_2"})}
    given = []
    for name, (shards, run) in runs.items():
        start = {key: str(copy_task.folder / value) for key, value in run.items()}
        run = {"save_checkpoint_steps": 2, **start}
        given.append(options(copy_task, name, run=run, safety={"checkpoint_shards": shards}, **common))
    torchrun(copy_task.folder, given, ranks=4)
    assert (copy_task.folder / "parts_step_6/shards/00003.safetensors").is_file()
    assert_close(copy_task.folder, "whole", "parts", 0.0)
    assert_close(copy_task.folder, "whole", "again", 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["off", "on"])
def test_a_sharded_run_goes_on_with_another_number_of_ranks(copy_task: Any, shards: str) -> None:
    folder = copy_task.folder
    # Buckets of one batch: an update then has the same examples on any number of ranks.
    common: dict[str, Any] = {"batching": {"bucket_size": 8}, "safety": {"checkpoint_shards": shards}}
    saves = {"save_checkpoint_steps": 2}
    torchrun(folder, [options(copy_task, "two", run={"accum_count": [2], **saves}, **common)])
    assert (folder / "two_step_2/shards").is_dir() == (shards == "on")
    run = {"accum_count": [4], "train_from": str(folder / "two_step_2"), "train_steps": 4, **saves}
    train(train_config(options(copy_task, "one", ranks=1, run=run, **common)))
    run = {"accum_count": [1], "train_from": str(folder / "one_step_4"), **saves}
    torchrun(folder, [options(copy_task, "four", ranks=4, devices={"shard_size": 2}, run=run, **common)], ranks=4)
    assert_close(folder, "two", "four", 1e-5)
