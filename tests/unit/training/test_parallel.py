"""Runs whose weights or blocks are sharded among processes give the losses and weights of one process.

torchrun runs this very file.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import ConfigError
from onmt_llm.training.checks import UNSHARDED_OPTIMIZERS, check_sharding
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.optim.registry import OPTIMIZERS
from onmt_llm.training.run import attempt
from onmt_llm.training.train import train
from options import train_config

STEPS = 12
ARCHITECTURE = {"encoder_layers": 0, "decoder_layers": 2, "norm": "rmsnorm", "position": "rotary", "hidden_size": 32}
LM = {"architecture": ARCHITECTURE}
LORA = {"lora_layers": ["q_proj", "down_proj"], "lora_rank": 2}
PREFERENCES = {**LM, "corpora": {"objective": "dpo"}}
EXPERTS = {"experts": 4, "experts_per_token": 2, "expert_size": 16}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "encoder-decoder, average, validated": {"optimizer": {"average_decay": 0.1}, "run": {"valid_steps": 6}},
    "tied, packed, recomputed": {
        "architecture": {**ARCHITECTURE, "tie_embeddings": True, "ffn_gated": True, "ffn_size": 25},
        "batching": {"packing": "pack", "packing_length": 16, "batch_type": "tokens", "batch_size": 256},
        "performance": {"use_ckpting": ["block"]},
        "optimizer": {"max_grad_norm": 0.1},
    },
    "lora, int8": {**LM, "lora": LORA, "quantization": {"quant_layers": ["up_proj", "q_proj"], "quant_type": "int8"}},
    "lora of the embedding": {**LM, "lora": {**LORA, "lora_embedding": True, "loraplus_lr_ratio": 4.0}},
    "dora": {**LM, "lora": {**LORA, "use_dora": True}},
    "twins": {
        **LM,
        "expansion": {"expand_every": 2},
        "quantization": {"quant_layers": ["up_proj"], "quant_type": "int8"},
    },
    "taller stack": {**LM, "expansion": {"expand_every": 2, "expand_type": "stack"}},
    "preferences": {**PREFERENCES, "preference": {"reference_model": "base"}},
    "mixture of experts": {"architecture": {**ARCHITECTURE, "moe": EXPERTS}},
    "a copy a pair": {"devices": {"shard_size": 2, "world_size": 4}},
}
PAIR, PAIRS = {"world_size": 2, "tensor_parallel": 2}, {"world_size": 4, "tensor_parallel": 2}
SHAW = {"position": "shaw", "relative_positions": 4}
INT8 = {"quant_type": "int8", "quant_compute": "float"}  # int8 products quantise the parts of the inputs one by one
TENSOR_PARALLEL: dict[str, dict[str, dict[str, Any]]] = {
    "halves": {
        "architecture": {**ARCHITECTURE, "ffn_gated": True, "ffn_size": 50, "tie_embeddings": True},
        "devices": {"world_size": 2, "tensor_parallel": 2},
        "batching": {"packing": "pack", "packing_length": 16, "batch_type": "tokens", "batch_size": 256},
        "optimizer": {"max_grad_norm": 0.1},
    },
    "halves of halves": {
        "devices": {"world_size": 4, "tensor_parallel": 2},
        "optimizer": {"average_decay": 0.1},
        "run": {"valid_steps": 6},
        "performance": {"use_ckpting": ["mha", "ffn"]},
    },
    "halves, copied": {**LM, "devices": {"world_size": 4, "tensor_parallel": 2, "shard": "off"}},
    "norm of each head": {
        "architecture": {**ARCHITECTURE, "qk_norm": True, "attention_sinks": True},
        "devices": PAIR,
        "optimizer": {"max_grad_norm": 0.1},
    },
    "layer norm of each head": {
        "architecture": {**ARCHITECTURE, "qk_norm": True, "qk_norm_type": "layernorm"},
        "devices": PAIRS,
    },
    "norm of all heads, relative positions": {
        "architecture": {**ARCHITECTURE, "qk_norm": True, "qk_norm_over": "all_heads", **SHAW},
        "devices": PAIRS,
    },
    "lora": {**LM, "lora": {**LORA, "lora_layers": ["q_proj", "o_proj", "up_proj", "down_proj"]}, "devices": PAIRS},
    "lora, int8, recomputed": {
        **LM,
        "lora": {**LORA, "lora_layers": ["q_proj", "down_proj"], "lora_embedding": True},
        "quantization": {**INT8, "quant_layers": ["q_proj", "o_proj", "down_proj"]},
        "performance": {"use_ckpting": ["lora", "block"]},
        "devices": PAIR,
    },
    "lora that starts with the weights": {**LM, "lora": {**LORA, "lora_init": "pissa"}, "devices": PAIR},
    "twins": {**LM, "expansion": {"expand_every": 2}, "devices": PAIR},
    "preferences": {**PREFERENCES, "preference": {"reference_model": "base"}, "devices": PAIRS},
    "preferences, lora": {**PREFERENCES, "lora": LORA, "devices": PAIR},
    "mixture of experts": {
        "architecture": {**ARCHITECTURE, "moe": {**EXPERTS, "shared_size": 8, "dense_layers": [0]}},
        "devices": PAIRS,
    },
}
OPTIMIZED: dict[str, dict[str, dict[str, Any]]] = {
    name: {"optimizer": {"optim": name}} for name in sorted(OPTIMIZERS.keys() - UNSHARDED_OPTIMIZERS - {"adamw"})
}
NEEDS_A_BASE = frozenset({"lora", "expansion", "preference"})


def main(given: Path) -> None:
    """What each rank does: the runs in a file."""
    dist.init_process_group("gloo")
    for options in json.loads(given.read_text()):
        measured(TrainConfig.model_validate(options))
    dist.destroy_process_group()


def measured(config: TrainConfig) -> None:
    """Train, and write what this rank held at the end."""
    loop = attempt.train_loop

    def keeping(components: TrainingComponents, *args: Any, **named: Any) -> Any:
        status = loop(components, *args, **named)
        file = Path(f"{config.run.save_model}_{components.world.size}_{components.world.rank}.json")
        file.write_text(json.dumps(bytes_held(components)))
        return status

    attempt.train_loop = keeping
    try:
        train(config)
    finally:
        attempt.train_loop = loop


def bytes_held(components: TrainingComponents) -> int:
    """Bytes of this rank's parameters, gradients and optimiser."""
    parameters = list(components.model.parameters())
    preference = components.objective.preference
    reference = [] if preference is None or preference.reference is None else preference.reference.parameters()
    moments = [value for slots in components.optimizer.state.values() for value in slots.values()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return sum(map(own_bytes, (*parameters, *reference, *trained, *moments)))


def own_bytes(tensor: Any) -> int:
    if not isinstance(tensor, Tensor):
        return 0
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).nbytes


def torchrun(folder: Path, runs: Iterable[dict[str, Any]], *, ranks: int = 2) -> None:
    given = folder / f"runs_{ranks}.json"
    given.write_text(json.dumps(list(runs)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    done = subprocess.run(
        [*command, __file__, str(given)], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


def written(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, the optimiser's included."""
    files = sorted(path.rglob("*.safetensors"))
    return {
        f"{file.name}/{name}": tensors.tensor(name)
        for file in files
        for tensors in [SafetensorsSet(file.parent, [file.name], listed=None)]
        for name in tensors.names()
    }


def options(task: Any, name: str, *, ranks: int = 2, shard: str = "full", **sections: Any) -> dict[str, Any]:
    """Options of a run whose updates have the same examples on any number of ranks: buckets hold one batch."""
    devices = {"world_size": ranks, "device": "cpu", "shard": shard, **sections.get("devices", {})}
    readers = ranks // devices.get("tensor_parallel", 1)
    run = {"accum_count": [4 // readers], "train_steps": STEPS, "save_model": str(task.folder / name)}
    given: dict[str, dict[str, Any]] = {
        "devices": devices,
        "run": {**run, **sections.get("run", {})},
        "batching": {"bucket_size": 8, **sections.get("batching", {})},
        "logging": {"progress": "none", "report_every": 1},
    }
    return task.config(**{**sections, **given}).model_dump(mode="json", exclude_unset=True)


def prepared(task: Any, sections: dict[str, Any]) -> dict[str, Any]:
    """The sections of a variant, with the files that it needs."""
    if not NEEDS_A_BASE & sections.keys():
        return sections
    base = str(task.folder / "base_step_6")
    if "corpora" in sections:
        data = {"train": {"path_jsonl": str(task.folder / "pairs.jsonl")}}
        sections = {**sections, "corpora": {**sections["corpora"], "data": data}}
    if "preference" in sections:
        sections["preference"] = {"reference_model": base}
    return {**sections, "run": {**sections.get("run", {}), "train_from": base, "reset_optim": "all"}}


def losses(folder: Path, name: str) -> list[float]:
    rows = map(json.loads, (folder / f"{name}_metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["split"] == "train"]


def assert_close(folder: Path, name: str, other: str, tolerance: float = 1e-4, step: int = STEPS) -> None:
    """Two runs have written equal checkpoints."""
    wanted, got = written(folder / f"{name}_step_{step}"), written(folder / f"{other}_step_{step}")
    assert wanted.keys() == got.keys()
    for key, tensor in wanted.items():
        message = f"{other}, {key}: {{}}".format
        torch.testing.assert_close(got[key].float(), tensor.float(), rtol=0, atol=tolerance, msg=message)


@pytest.fixture
def task(copy_task: Any) -> Any:
    """The copy task, with a base model and pairs of answers."""
    copy_task.run("base", **LM)
    draw = random.Random(3)
    words = [[f"w{draw.randrange(12)}" for _ in range(3)] for _ in range(600)]
    keys = ("prompt", "chosen", "rejected")
    pairs = [dict(zip(keys, map(" ".join, three), strict=True)) for three in zip(*[iter(words)] * 3, strict=True)]
    (copy_task.folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return copy_task


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variants", [VARIANTS, TENSOR_PARALLEL, OPTIMIZED], ids=["models", "tensor parallel", "optim"])
def test_a_sharded_run_is_that_of_one_process(task: Any, variants: dict[str, dict[str, dict[str, Any]]]) -> None:
    runs: dict[int, list[dict[str, Any]]] = {2: [], 4: []}
    for variant, given in variants.items():
        sections = prepared(task, given)
        ranks = sections.get("devices", {}).get("world_size", 2)
        runs[ranks].append(options(task, f"{variant} shared", ranks=ranks, **sections))
        alone = {**sections, "devices": {}}
        measured(train_config(options(task, f"{variant} alone", ranks=1, **alone)))
    for ranks, several in runs.items():
        if several:
            torchrun(task.folder, several, ranks=ranks)
    for variant, sections in variants.items():
        ranks = sections.get("devices", {}).get("world_size", 2)
        assert_close(task.folder, f"{variant} alone", f"{variant} shared")
        found, wanted = (losses(task.folder, f"{variant} {kind}") for kind in ("shared", "alone"))
        assert len(wanted) == STEPS and found == pytest.approx(wanted, abs=1e-5), variant
        if "tensor_parallel" in sections.get("devices", {}):
            continue  # embeddings are held twice
        copies = ranks // sections.get("devices", {}).get("shard_size", ranks)
        whole = int((task.folder / f"{variant} alone_1_0.json").read_text())
        parts = [int((task.folder / f"{variant} shared_{ranks}_{rank}.json").read_text()) for rank in range(ranks)]
        assert sum(parts) <= 1.05 * copies * whole, variant


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pure", [False, True])
def test_sharded_runs_in_bf16_are_those_of_one_process(task: Any, pure: bool) -> None:
    sections = {**LM, "performance": {"model_dtype": "bf16", "pure_bf16": pure}}
    # One micro-batch on each rank: more are summed in another order than by one process.
    torchrun(task.folder, [options(task, "shared", **sections, run={"accum_count": [1]})])
    train(train_config(options(task, "alone", ranks=1, **sections, run={"accum_count": [2]})))
    # Otherwise the weights of norms are rounded to bf16 where they are gathered, and nothing else differs.
    tolerance = 0.0 if pure else 2e-2
    assert losses(task.folder, "shared") == pytest.approx(losses(task.folder, "alone"), abs=tolerance)
    wanted, got = written(task.folder / f"alone_step_{STEPS}"), written(task.folder / f"shared_step_{STEPS}")
    # Adam turns the rounding of a gradient near zero into a whole step of 0.01.
    assert all((got[name].float() - tensor.float()).abs().mean() <= tolerance / 2 for name, tensor in wanted.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_sharding(task: Any) -> None:
    def resumed(name: str) -> dict[str, Any]:
        return {"run": {"train_from": str(task.folder / name)}}

    halves = {"tensor_parallel": 2}
    auto = options(task, "auto", shard="auto")  # both copies fit
    torchrun(task.folder, [options(task, "halves", devices=halves), auto])
    copies = options(task, "copies", ranks=4, devices={"shard_size": 2}, **resumed("halves_step_3"))
    train(train_config(options(task, "one", ranks=1, **resumed("halves_step_3"))))
    quarters = options(task, "quarters", ranks=4, devices=halves, **resumed("one_step_6"))
    torchrun(task.folder, [copies, quarters], ranks=4)
    for name in ("one", "copies", "quarters", "auto"):
        assert_close(task.folder, "halves", name, 1e-5)


def test_what_needs_whole_weights_is_refused_by_name() -> None:
    def refused(match: str, *, quant_type: str = "", **sections: Any) -> None:
        config = train_config({**sections, "devices": {"shard": "full", **sections.get("devices", {})}})
        with pytest.raises(ConfigError, match=match):
            check_sharding(config, 2, quant_type)
        check_sharding(config, 1, quant_type)

    for optim in UNSHARDED_OPTIMIZERS:
        refused(f"optim is {optim}", optimizer={"optim": optim})
    refused("optimizer_in_backward is set", performance={"optimizer_in_backward": True})
    refused("offload_activations is set", performance={"offload_activations": True})
    refused("quant_type is bnb_NF4", quant_type="bnb_NF4")
    refused("'shard_size' must divide the number of processes, 2, but is 3", devices={"shard_size": 3})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
