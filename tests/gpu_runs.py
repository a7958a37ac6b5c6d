"""Short runs of a tiny language model, the same on every device."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import onmt_llm
from onmt_llm.training.result import TrainResult

WORDS = [f"w{number}" for number in range(30)]
BASE: dict[str, Any] = {
    "decoder_layers": 2,
    "hidden_size": 128,
    "heads": 4,
    "kv_heads": 2,
    "ffn_size": 256,
    "ffn_gated": True,
    "norm": "rmsnorm",
    "position": "rotary",
    "activation": "silu",
    "packing": "pack",
    "packing_length": 64,
    "batch_size": 8,
    "bucket_size": 512,
    "learning_rate": 3e-3,
    "train_steps": 20,
    "report_every": 1,
    "save_checkpoint_steps": 1000,
    "seed": 5,
    "progress": "none",
}


class GpuRuns:
    """Runs in one folder.

    Args:
        folder: Where they write.
        fast: The device under test; "cpu" tries the tests themselves.
    """

    def __init__(self, folder: Path, fast: str) -> None:
        self.folder = folder
        self.fast = fast
        rng = random.Random(1)
        # Each word determines the next one, so that there is something to learn.
        lines = [
            " ".join(WORDS[(start + 7 * place) % 30] for place in range(rng.randint(3, 14))) for start in range(600)
        ]
        (folder / "train.txt").write_text("\n".join(lines) + "\n")
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")

    def run(self, name: str, device: str, **options: Any) -> TrainResult:
        shape = {} if "train_from" in options else {"src_vocab": str(self.folder / "vocab.txt")}
        given = {**{key: value for key, value in BASE.items() if shape or key not in _ARCHITECTURE}, **shape, **options}
        data = {"train": {"path_src": str(self.folder / "train.txt")}}
        return onmt_llm.train(**given, data=data, save_model=str(self.folder / name), device=device)

    def losses(self, name: str, device: str, **options: Any) -> list[float]:
        """The loss of each update."""
        self.run(name, device, **options)
        rows = map(json.loads, (self.folder / f"{name}_metrics.jsonl").read_text().splitlines())
        return [row["xent"] for row in rows if row["split"] == "train"]

    def base(self) -> str:
        """A model to fine-tune."""
        path = self.folder / "base_step_20"
        if not path.exists():
            self.run("base", "cpu")
        return str(path)


_ARCHITECTURE = {
    *("decoder_layers", "hidden_size", "heads", "kv_heads", "ffn_size", "ffn_gated", "norm", "position", "activation")
}
