"""Peak memory of each of two processes while `shard: full` loads a model of 1.35 B parameters.

`python docs/benchmarks/sharding.py SCRATCH` writes a random LLaMA in bf16 into the folder SCRATCH (2.7 GB, as
`conversion.py` does), converts it, loads it with two processes on the CPU in several ways, and removes all files.
Columns, in MB (10^6 bytes), of the process that needs most:

- program: RssAnon before the model is built: Python, torch, tokeniser;
- part: what the process holds of the weights at the end;
- block: one block of the whole model;
- peak: the largest RssAnon until the model is ready for its first update;
- limit: part, block, and 400 MB.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conversion import SIZES, write_model

from onmt_llm.config.section import options_of
from onmt_llm.config.train import TrainConfig
from onmt_llm.training.process.dist import open_world
from onmt_llm.training.run.build import build_components
from onmt_llm.training.setup.run_setup import open_run_setup

MB = 1e6
WAYS: dict[str, dict[str, Any]] = {
    "bf16, all trained": {"pure_bf16": True},
    "LoRA over int8": {
        "lora_layers": ["q_proj", "v_proj"],
        "lora_rank": 16,
        "quant_layers": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "quant_type": "int8",
    },
    "bf16, new weights": {"pure_bf16": True, "train_from": None},
}


def anonymous_memory() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


class Peak(threading.Thread):
    """The largest RssAnon while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._ended = 0, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, anonymous_memory())

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.bytes


def options(scratch: Path, way: dict[str, Any]) -> TrainConfig:
    """The options of a run, of which only the start is done."""
    model = SIZES["1.35B"]
    values = {
        "data": {"text": {"path_src": str(scratch / "text.txt")}},
        "save_model": str(scratch / "run"),
        "train_from": str(scratch / "ours"),
        "model_dtype": "bf16",
        "shard": "full",
        "world_size": 2,
        "device": "cpu",
        "seed": 1,
        **way,
    }
    if values["train_from"] is None:
        values |= {
            "model_task": "lm",
            "src_vocab": str(scratch / "ours" / "vocab.txt"),
            "hidden_size": model["hidden_size"],
            "ffn_size": model["intermediate_size"],
            "decoder_layers": model["num_hidden_layers"],
            "encoder_layers": 0,
            "heads": model["num_attention_heads"],
            "norm": "rmsnorm",
            "ffn_gated": True,
            "activation": "silu",
            "position": "rotary",
        }
    leaves, sections = options_of(TrainConfig), {}
    for name, value in values.items():
        sections.setdefault(leaves[name].section, {})[name] = value
    return TrainConfig.model_validate(sections)


def load(scratch: Path, way: str) -> None:
    """What each of the two processes does."""
    world = open_world("cpu", 2)
    setup = open_run_setup(options(scratch, WAYS[way]))
    program, peak = anonymous_memory(), Peak()
    peak.start()
    model = build_components(setup, world, seed=1).model
    highest = peak.end()
    assert model.decoder is not None
    part = sum(p.to_local().nbytes for p in model.parameters())  # type: ignore[attr-defined]
    block = sum(p.nbytes for p in model.decoder.layers[0].parameters())
    figures = {"program": program, "part": part, "block": block, "peak": highest, "limit": part + block + 400 * MB}
    (scratch / f"{world.rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def main() -> None:
    scratch = Path(sys.argv[1]) / "sharding"
    if len(sys.argv) > 2:
        return load(scratch, sys.argv[2])
    try:
        write_model(scratch / "hf", SIZES["1.35B"])
        (scratch / "text.txt").write_text("A line of text.\n" * 100)
        convert = [sys.executable, "-m", "onmt_llm.cli.convert", "-model_dir", scratch / "hf"]
        subprocess.run([*convert, "-output", scratch / "ours"], check=True, capture_output=True)
        shutil.rmtree(scratch / "hf")
        print(f"{'':20}" + "".join(f"{name:>9}" for name in ("program", "part", "block", "peak", "limit")))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        for way in WAYS:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([*torchrun, sys.argv[1], way], check=True, env=environment)
            ranks = [json.loads((scratch / f"{rank}.json").read_text()) for rank in (0, 1)]
            most = max(ranks, key=lambda figures: figures["peak"] - figures["part"])
            print(f"{way:20}" + "".join(f"{value / MB:9,.0f}" for value in most.values()), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
