"""The programs that `training.py` times, each in a separate process: `python training_programs.py JOB.json`.

Each makes one pass over the job's corpus, saves the trained weights in the job's folder, and prints as JSON the trained
tokens of every update and the seconds at its end. Two others measure the processor's peak and the held-out loss.
Our package is imported only to run it and to measure the peak.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Found = dict[str, Any]

IGNORED = -100
RANK, ALPHA = 8, 16
PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "_int_mm", "mkldnn_linear")}
# batched products occur only in attention, and so does softmax
ATTENTION = {f"aten::{name}" for name in ("bmm", "baddbmm", "_softmax", "_softmax_backward_data")}
COPIES = {f"aten::{name}" for name in ("copy_", "cat", "fill_", "zero_", "index_select", "index", "_to_copy", "clone")}
INSIDE = {"Optimizer": "optimiser", "scaled_dot_product": "attention", "Attend": "attention"}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def ours(job: Job) -> Found:
    """onmt_llm, through the entry point of the command."""
    import yaml

    from onmt_llm.cli.train import main

    file = Path(job["folder"], "train.yaml")
    file.write_text(yaml.safe_dump(job["settings"], sort_keys=False), encoding="utf-8")
    if code := main(["-config", str(file)]):
        sys.exit(code)
    metrics = Path(f"{job['settings']['save_model']}_metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, metrics) if row["split"] == "train"]
    # exclude saving from the time of an update
    seconds = [row["tokens"] / row["tokens_per_second"] for row in rows]
    ends = [sum(seconds[: place + 1]) for place in range(len(seconds))]
    return {"tokens": [row["tokens"] for row in rows], "ends": ends}


def profile(job: Job) -> Found:
    """Seconds of an onmt_llm update, by kind and operator, without the operators that each calls."""
    from collections import Counter

    from onmt_llm.training.metrics.profiler import Profiler

    seconds: dict[str, Counter[str]] = {}
    finish = Profiler._finish

    def finish_and_count(profiler: Any) -> None:
        if profiler._profile is not None:
            profiler._open.close()
            for event in profiler._profile.events():
                kind = seconds.setdefault(_kind(event), Counter())
                kind[event.name] += event.self_cpu_time_total / 1e6 / len(profiler._done)
        finish(profiler)

    Profiler._finish = finish_and_count  # type: ignore[method-assign]
    ours(job)
    return {"seconds": seconds}


def _kind(event: Any) -> str:
    """Kind of an operator: by its callers, then by its name."""
    callers, caller = event.name, event.cpu_parent
    while caller is not None:
        callers, caller = f"{callers} {caller.name}", caller.cpu_parent
    is_product = event.name in PRODUCTS
    if "ChunkedLoss" in callers:
        return "output layer" if is_product else "loss"
    for part, kind in INSIDE.items():
        if part in callers:
            return kind
    for names, kind in ((PRODUCTS, "matrix products"), (ATTENTION, "attention"), (COPIES, "copies and casts")):
        if event.name in names:
            return kind
    return "element-wise"


def transformers(job: Job) -> Found:
    """transformers' Trainer, with a peft adapter or without."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    weights = torch.bfloat16 if job["weights"] == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=weights, attn_implementation="sdpa")
    model.config.use_cache = False
    if not job["full"]:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter, autocast_adapter_dtype=job["float32_adapters"])
    parts = job.get("parts", 1)  # number of parts of an update's batch
    tokens: list[int] = []
    ends: list[float] = []
    pad = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job["model"]))

    def collate(rows: list[dict[str, list[int]]]) -> Any:
        batch = pad(rows)
        tokens.append(int((batch["labels"] != IGNORED).sum()))
        return batch

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=job["folder"],
        per_device_train_batch_size=job["batch_size"] // parts,
        gradient_accumulation_steps=parts,
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=job["autocast"],
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length",
        use_cpu=True,
        seed=job["seed"],
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [json.loads(line) for line in Path(job["train"]).read_text(encoding="utf-8").splitlines()]
    Trainer(model, arguments, data_collator=collate, train_dataset=rows, callbacks=[Clock()]).train()
    model.save_pretrained(f"{job['folder']}/learned")
    updates = [sum(tokens[start : start + parts]) for start in range(0, len(tokens), parts)]
    return {"tokens": updates[: len(ends)], "ends": ends}


def opennmt(job: Job) -> Found:
    """OpenNMT-py 3.5."""
    import yaml
    from onmt.bin.train import main
    from onmt.trainer import Trainer

    tokens: list[int] = []
    ends: list[float] = []
    report = Trainer._maybe_report_training

    def recorded(trainer: Any, step: int, last: int, rate: float, stats: Any) -> Any:
        tokens.append(stats.n_words)
        ends.append(time.perf_counter())
        return report(trainer, step, last, rate, stats)

    Trainer._maybe_report_training = recorded
    file = Path(job["folder"], "train.yaml")
    file.write_text(yaml.safe_dump(job["settings"]), encoding="utf-8")
    sys.argv = ["onmt_train", "-config", str(file)]
    main()
    return {"tokens": tokens, "ends": ends}


def held_out_loss(job: Job) -> Found:
    """Mean loss of held-out answers, in nats per token: transformers in float32, one example at a time."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if job["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["adapter"])
    total, count = 0.0, 0
    with torch.inference_mode():
        for line in Path(job["valid"]).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            logits_TV = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels_T = torch.tensor(row["labels"][1:])
            total += float(cross_entropy(logits_TV, labels_T, ignore_index=IGNORED, reduction="sum"))
            count += int((labels_T != IGNORED).sum())
    return {"loss": total / count}


def peak(job: Job) -> Found:
    """Operations per second of matrix products in bf16."""
    import torch

    from onmt_llm.training.metrics.mfu import matmul_peak

    return {"peak": matmul_peak(torch.device("cpu"), torch.bfloat16, seconds=2.0)}


PROGRAMS: dict[str, Callable[[Job], Found]] = {
    each.__name__: each for each in (ours, profile, transformers, opennmt, held_out_loss, peak)
}

if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as job_file:
        the_job = json.load(job_file)
    result = PROGRAMS[the_job["program"]](the_job)
    Path(the_job["folder"], "found.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)
