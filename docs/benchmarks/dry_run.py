"""Peak memory of each of two processes with `shard: full`: what `-dry_run` estimates, and what a run takes.

`python docs/benchmarks/dry_run.py SCRATCH [WORD ...]` trains small language models on the CPU in the folder SCRATCH:
all combinations of `WAYS`, or those whose names have every WORD. Columns, in MB (10^6 bytes):

- estimate: the total of `-dry_run`;
- program: what of it is not the model;
- measured: VmHWM of the process that needs more, after two updates;
- ratio: estimate / measured.

malloc gives up what is freed (`MALLOC_MMAP_THRESHOLD_`); otherwise it keeps pieces of many sizes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import onmt_llm
from onmt_llm.config.train import TrainConfig
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.process.host_memory import peak_memory

MB = 1e6
SHAPE = {
    "decoder_layers": 8,
    "hidden_size": 512,
    "heads": 8,
    "ffn_size": 2048,
    "ffn_gated": True,
    "norm": "rmsnorm",
    "position": "rotary",
}
LORA = {"lora_layers": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "lora_rank": 16}
WAYS: list[dict[str, dict[str, Any]]] = [
    {"float32": {"model_dtype": "fp32"}, "bf16": {"model_dtype": "bf16"}},
    {"": {}, "recomputed": {"use_ckpting": ["block"]}},
    {"": {}, "LoRA": LORA},
    {"": {}, "one chunk": {"loss_chunk_tokens": 1 << 20}},
]


def one(scratch: Path, name: str) -> None:
    """What each of the two processes does, or the process that plans: write its figures."""
    config, rank = options(scratch, name), os.environ.get("RANK", "plan")
    if rank == "plan":
        planned = plan(config)
        figures = [planned.peak, planned.program]
    else:
        onmt_llm.train(config)
        figures = [peak_memory("cpu")["peak_rss"]]
    (scratch / f"{rank}.json").write_text(json.dumps(figures))


def options(scratch: Path, name: str) -> TrainConfig:
    """The options of the run whose way has this name."""
    chosen: dict[str, Any] = {}
    for ways in WAYS:
        chosen |= next(value for word, value in reversed(ways.items()) if word in name)
    start = {"train_from": str(scratch / "base_step_1"), "reset_optim": "all"} if "LoRA" in name else SHAPE
    shared = {**common(scratch), "world_size": 2, "shard": "full", "train_steps": 2}
    return onmt_llm.load_config({**shared, **start, **chosen})


def common(scratch: Path) -> dict[str, Any]:
    """Options of all runs."""
    return {
        "data": {"train": {"path_src": str(scratch / "train.txt")}},
        "src_vocab": str(scratch / "vocab.txt"),
        "vocab_size_multiple": 8000,
        "save_model": str(scratch / "run"),
        "keep_checkpoint": 0,
        "model_task": "lm",
        "device": "cpu",
        "seed": 1,
        "batch_type": "tokens",
        "batch_size": 1024,
        "bucket_size": 400,
        "packing": "wrap",
        "packing_length": 256,
        "progress": "none",
    }


def prepare(scratch: Path) -> None:
    """Write the data, and a model that adapters are added to."""
    words, rng = [f"w{number}" for number in range(100)], random.Random(1)
    lines = (" ".join(rng.choices(words, k=rng.randint(20, 60))) for _ in range(2000))
    (scratch / "train.txt").write_text("\n".join(lines) + "\n")
    (scratch / "vocab.txt").write_text("\n".join(words) + "\n")
    base = {**common(scratch), **SHAPE, "save_model": str(scratch / "base"), "train_steps": 1, "keep_checkpoint": 1}
    onmt_llm.train(base)


def main() -> None:
    scratch, words = Path(sys.argv[1]) / "dry_run", sys.argv[2:]
    if words[:1] == ["base"]:
        return prepare(scratch)
    if words[:1] == ["one"]:
        return one(scratch, words[1])
    scratch.mkdir(parents=True, exist_ok=True)
    if not (scratch / "base_step_1").exists():
        subprocess.run([sys.executable, __file__, sys.argv[1], "base"], check=True)
    print(f"{'':40}" + "".join(f"{column:>10}" for column in ("estimate", "program", "measured", "ratio")))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    for way in product(*WAYS):
        name = ", ".join(filter(None, way))
        if not all(word in name for word in words):
            continue
        for start in ([], torchrun):
            command = [sys.executable, *start, __file__, sys.argv[1], "one", name]
            subprocess.run(command, check=True, env=environment, capture_output=True)
        (estimate, program), *ranks = (json.loads((scratch / f"{who}.json").read_text()) for who in ("plan", 0, 1))
        measured = max(rank[0] for rank in ranks)
        print(f"{name:40}{estimate / MB:10,.0f}{program / MB:10,.0f}{measured / MB:10,.0f}{estimate / measured:10.2f}")


if __name__ == "__main__":
    main()
