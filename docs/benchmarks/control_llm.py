"""What fine-tuning on a new task costs the old ones, by method: `control_llm.md` has the figures.

    python recipes/control_llm/make_toy_data.py toy                  # and the next three commands of the recipe, up to
    onmt_llm_train -config recipes/control_llm/tiny_base.yaml        # the base model
    python docs/benchmarks/control_llm.py -base toy/base_step_300 -work runs

All variants train on the new task alone, with the options of `recipes/control_llm/tiny.yaml`. An update has
all 30 examples of it, so a seed would change nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

import onmt_llm

RECIPE = Path(__file__).parents[2] / "recipes/control_llm/tiny.yaml"
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONCAT: dict[str, Any] = {"expand_every": 2, "expand_type": "concat"}
SLOW: dict[str, Any] = {"expand_divergence": 1.0, "learning_rate": 1e-3}
VARIANTS: dict[str, dict[str, Any]] = {
    "whole model": {},
    "whole model, learning rate / 10": {"learning_rate": 3e-4},
    "LoRA, rank 8": {"lora_layers": LAYERS, "lora_rank": 8, "lora_alpha": 16},
    "stack": {"expand_every": 2, "expand_type": "stack"},
    "concat": {**CONCAT},
    "concat, divergence 1": {**CONCAT, "expand_divergence": 1.0},
    "concat, divergence 3": {**CONCAT, "expand_divergence": 3.0},
    "concat, all blocks, divergence 1": {**CONCAT, "expand_every": 1, "expand_divergence": 1.0},
    "concat, divergence 1, learning rate / 3": {**CONCAT, **SLOW},
    "concat, divergence 1, learning rate / 3, 400 updates": {**CONCAT, **SLOW, "train_steps": 400},
}
LANGUAGES = ("first", "second")


def validations(save_model: Path) -> list[dict[str, float]]:
    rows = map(json.loads, Path(f"{save_model}_metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["split"] == "valid"]


def accuracy(row: dict[str, float]) -> float:
    return row["valid_new/accuracy"]


def measure(options: dict[str, Any], save_model: Path) -> dict[str, float]:
    """Train one variant; the last validation."""
    if not Path(f"{save_model}_metrics.jsonl").exists():
        onmt_llm.train(options, save_model=str(save_model))
    return validations(save_model)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what fine-tuning costs the old task.")
    parser.add_argument("-base", required=True)
    parser.add_argument("-work", type=Path, required=True)
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
    losses = {name: before[f"valid_{name}/xent"] for name in LANGUAGES}
    print("| variant | " + " | ".join(f"loss of the {name} language" for name in LANGUAGES) + " | new task: accuracy |")
    print("|---|--:|--:|--:|")
    print("| before | " + " | ".join(f"{loss:.3f}" for loss in losses.values()), "|", f"{accuracy(before):.1f} |")
    for name in arguments.variants:
        save_model = arguments.work / name.replace(" ", "_").replace("/", "by")
        row = measure({**common, **VARIANTS[name]}, save_model)
        changes = [100 * (row[f"valid_{one}/xent"] / loss - 1) for one, loss in losses.items()]
        print(f"| {name} | {' | '.join(f'{change:+.1f}%' for change in changes)} | {accuracy(row):.1f} |", flush=True)


if __name__ == "__main__":
    main()
