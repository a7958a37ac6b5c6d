"""What fine-tuning on a new task costs the old one: whole model, LoRA, and expanded blocks. `control_llm.md` has the figures.

    python recipes/control_llm/make_toy_data.py toy                  # and the next three commands of the recipe, up to
    onmt_llm_train -config recipes/control_llm/tiny_base.yaml        # the base model
    python docs/benchmarks/control_llm.py -base toy/base_step_300 -work runs

All variants train on the new task alone, with the options of `recipes/control_llm/tiny.yaml`. The table has the mean over
the seeds, and in brackets the worst seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

import onmt_llm

RECIPE = Path(__file__).parents[2] / "recipes/control_llm/tiny.yaml"
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONCAT: dict[str, Any] = {"expand_every": 2, "expand_type": "concat"}
VARIANTS: dict[str, dict[str, Any]] = {
    "whole model": {},
    "whole model, learning rate / 10": {"learning_rate": 3e-4},
    "LoRA, rank 8": {"lora_layers": LAYERS, "lora_rank": 8, "lora_alpha": 16},
    "stack": {"expand_every": 2, "expand_type": "stack"},
    "concat": {**CONCAT},
    "concat, divergence 1": {**CONCAT, "expand_divergence": 1.0},
    "concat, divergence 10": {**CONCAT, "expand_divergence": 10.0},
    "concat, divergence 100": {**CONCAT, "expand_divergence": 100.0},
    "whole model, replay": {"replay": 0.1},
    "LoRA, rank 8, replay": {"lora_layers": LAYERS, "lora_rank": 8, "lora_alpha": 16, "replay": 0.1},
    "stack, replay": {"expand_every": 2, "expand_type": "stack", "replay": 0.1},
    "concat, divergence 10, replay": {**CONCAT, "expand_divergence": 10.0, "replay": 0.1},
}
OLD = {"path_txt": "toy/old.train.txt", "documents_by": "line"}
SEEDS = (1, 2, 3)


def validations(save_model: Path) -> list[dict[str, float]]:
    rows = map(json.loads, Path(f"{save_model}_metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["split"] == "valid"]


def measure(options: dict[str, Any], save_model: Path) -> dict[str, float]:
    """Train one variant; the last validation. `replay` is the share of examples of the old task."""
    options = dict(options)
    if share := options.pop("replay", 0.0):
        new = {**options["data"]["new"], "weight": 1 - share}
        options["data"] = {**options["data"], "old": {**OLD, "weight": share}, "new": new}
    if not Path(f"{save_model}_metrics.jsonl").exists():
        onmt_llm.train(options, save_model=str(save_model))
    return validations(save_model)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what fine-tuning costs the old task.")
    parser.add_argument("-base", required=True)
    parser.add_argument("-work", type=Path, required=True)
    parser.add_argument("-seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("-variants", nargs="+", default=list(VARIANTS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    common = {
        name: value
        for name, value in yaml.safe_load(RECIPE.read_text(encoding="utf-8")).items()
        if not name.startswith("expand_")
    }
    common |= {"train_from": arguments.base, "progress": "none", "threads": 1, "keep_checkpoint": 0}
    still = {**common, "train_steps": 1, "valid_steps": 1, "learning_rate": 1e-12, "warmup_steps": 0}
    before = measure(still, arguments.work / "before")
    print("| variant | loss of the old task | change | accuracy on the new task |\n|---|--:|--:|--:|")
    print(f"| before | {before['valid_old/xent']:.3f} | | {before['valid_new/accuracy']:.1f} |")
    for name in arguments.variants:
        found = []
        for seed in arguments.seeds:
            save_model = arguments.work / f"{name} {seed}".replace(" ", "_").replace("/", "by")
            found.append(measure({**common, **VARIANTS[name], "seed": seed}, save_model))
        old = [row["valid_old/xent"] for row in found]
        change = [100 * (loss / before["valid_old/xent"] - 1) for loss in old]
        new = [row["valid_new/accuracy"] for row in found]
        print(
            f"| {name} | {statistics.mean(old):.3f} | {statistics.mean(change):+.1f}% ({max(change):+.1f}%) "
            f"| {statistics.mean(new):.1f} ({min(new):.1f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
