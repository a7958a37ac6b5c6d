"""Time that training waits for a checkpoint: written in the background, synchronously, and by `torch.save`.

`python docs/benchmarks/checkpointing.py [SAVES [HIDDEN_SIZE]]` trains a language model (100 MB of float32 weights, and
200 MB of AdamW state, at the default width of 512) on random text, saves `SAVES` times with each method, and prints the
time that the loop waits.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from onmt_llm.config.train import TrainConfig
from onmt_llm.training.checkpointing import saver
from onmt_llm.training.state import Progress
from onmt_llm.training.train import train

EVERY = 16


def timed(work: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        start = time.perf_counter()
        result = work(*args)
        times.append(time.perf_counter() - start)
        return result

    return wrapper


def torch_save(self: saver.CheckpointSaver, progress: Progress) -> None:
    """Save as a plain loop does: to the final name, without sync or verification."""
    content = {"model": self.components.model.state_dict(), "optimizer": self.components.optimizer.state_dict()}
    torch.save(content, Path(f"{self.components.run.save_model}.pt"))


def config(folder: Path, saves: int, hidden: int, save_async: bool) -> TrainConfig:
    words = [f"w{i}" for i in range(12000)]
    rng = random.Random(1)
    (folder / "vocab.txt").write_text("\n".join(words))
    for side in ("src", "tgt"):
        (folder / f"text.{side}").write_text("".join(" ".join(rng.choices(words, k=6)) + "\n" for _ in range(2000)))
    return TrainConfig.model_validate(
        {
            "corpora": {"data": {"text": {f"path_{s}": str(folder / f"text.{s}") for s in ("src", "tgt")}}},
            "vocabulary": {"src_vocab": str(folder / "vocab.txt")},
            "start": {"model_task": "lm"},
            "batching": {"batch_size": 4, "bucket_size": 64},
            "architecture": {
                "decoder_layers": 4,
                "hidden_size": hidden,
                "heads": 8,
                "ffn_size": 4 * hidden,
                "position": "rotary",
            },
            "run": {
                "save_model": str(folder / "m"),
                "train_steps": EVERY * saves,
                "save_checkpoint_steps": EVERY,
                "keep_checkpoint": 1,
                "seed": 1,
            },
            "safety": {"save_async": save_async},
            "logging": {"progress": "none"},
        }
    )


def main() -> None:
    saves = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    hidden = int(sys.argv[2]) if len(sys.argv) > 2 else 512
    call, write = saver.CheckpointSaver.__call__, saver.CheckpointSaver._write
    print("| method | training waits: median ms | min | max | written in: median ms |\n|---|--:|--:|--:|--:|")
    for name, save, save_async in (
        ("in the background (`save_async: true`)", call, True),
        ("synchronously (`save_async: false`)", call, False),
        ("`torch.save`, not synced, no hashes", torch_save, False),
    ):
        waits: list[float] = []
        writes: list[float] = []
        saver.CheckpointSaver.__call__ = timed(save, waits)  # type: ignore[method-assign]
        saver.CheckpointSaver._write = timed(write, writes)  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as folder:
            train(config(Path(folder), saves, hidden, save_async))
        # the first save allocates pages and fills caches for the others
        ms = sorted(1000 * wait for wait in waits[1:])
        written = f"{1000 * statistics.median(writes[1:]):.0f}" if writes else f"{statistics.median(ms):.0f}"
        print(f"| {name} | {statistics.median(ms):.0f} | {ms[0]:.0f} | {ms[-1]:.0f} | {written} |", flush=True)


if __name__ == "__main__":
    main()
