"""Fine-tuning on one GPU: speed, share of the peak and memory, beside transformers + peft (`make bench-gpu`).

    python docs/benchmarks/gpu.py [-size 1b|3b|tiny] [-updates 20] [-device cuda|cpu] [-only NAME ...]

A LLaMA with random weights is trained in bf16 on rows of random tokens: the whole model, LoRA of rank 16 on all linear
layers, and LoRA over 8 and 4 bits (bitsandbytes). Every program has the same shape, the same number of tokens in an
update, AdamW (fused) and no activation checkpointing, and runs in a process of its own. The first quarter of the
updates is not counted. The share of the peak counts 6 operations per weight and token if the whole model is trained,
and 4 with adapters, over the rate of bf16 products of 8,192 x 8,192 matrices. `-size tiny -device cpu` tries the
script itself.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "ffn": 128, "vocab": 500, "length": 64, "rows": 2},
    "1b": {"hidden": 2048, "layers": 24, "heads": 16, "ffn": 5632, "vocab": 32000, "length": 1024, "rows": 4},
    "3b": {"hidden": 3072, "layers": 28, "heads": 24, "ffn": 8192, "vocab": 32000, "length": 1024, "rows": 2},
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = ("full", "lora", "lora over 8 bits", "lora over 4 bits")
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-size", choices=SIZES, default="1b")
    parser.add_argument("-updates", type=int, default=20)
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("-only", nargs="*", default=[], help="methods")
    parser.add_argument("-worker", nargs=3, metavar=("PROGRAM", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        program, method, folder = options.worker
        print(json.dumps(PROGRAMS[program](method, Path(folder), options)))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a CUDA card, and there is none: nothing was measured.")
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{device_name(options.device)}, torch {torch.__version__}\n")
        print("| method | program | tokens/s | share of the peak | peak memory |\n|---|---|--:|--:|--:|")
        for method in options.only or METHODS:
            for program in PROGRAMS:
                print(row(method, program, measure(program, method, folder)), flush=True)


def measure(program: str, method: str, folder: str) -> dict[str, float] | None:
    """Run one program in a process of its own; None if it fails, with its last line on standard error."""
    command = [sys.executable, *sys.argv, "-worker", program, method, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{program}, {method}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def row(method: str, program: str, found: dict[str, float] | None) -> str:
    if found is None:
        return f"| {method} | {program} | failed | | |"
    peak = f"{found['share']:.1%}" if found["share"] else ""
    return f"| {method} | {program} | {found['speed']:,.0f} | {peak} | {found['memory'] / 2**30:.2f} GiB |"


def ours(method: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    import onmt_llm

    size = SIZES[options.size]
    text, vocab = folder / "text.txt", folder / "vocab.txt"
    words = [f"w{number}" for number in range(size["vocab"] - 4)]
    rng = random.Random(1)
    text.write_text("".join(" ".join(rng.choices(words, k=size["length"])) + "\n" for _ in range(512)))
    vocab.write_text("\n".join(words) + "\n")
    shared: dict[str, Any] = {
        "data": {"random": {"path_src": str(text)}},
        "packing": "wrap",
        "packing_length": size["length"],
        "isolate_documents": False,
        "batch_size": size["rows"],
        "bucket_size": 64,
        "report_every": 1,
        "learning_rate": 1e-5,
        "max_grad_norm": 1.0,
        "save_async": False,
        "seed": 1,
        "progress": "none",
        "device": options.device,
    }
    model = {
        "src_vocab": str(vocab),
        "hidden_size": size["hidden"],
        "decoder_layers": size["layers"],
        "heads": size["heads"],
        "ffn_size": size["ffn"],
        "ffn_gated": True,
        "activation": "silu",
        "norm": "rmsnorm",
        "position": "rotary",
    }
    whole = {**shared, **model, "model_dtype": "bf16", "pure_bf16": True}
    name = method.replace(" ", "_")
    if method == "full":
        onmt_llm.train(**whole, train_steps=options.updates, keep_checkpoint=0, save_model=str(folder / name))
    else:
        base = folder / "base_step_1"
        if not base.exists():
            onmt_llm.train(**whole, train_steps=1, save_model=str(folder / "base"))
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
        bits = {"lora over 8 bits": "bnb_8bit", "lora over 4 bits": "bnb_NF4"}
        quantised = {"quant_layers": LINEAR, "quant_type": bits[method]} if method in bits else {}
        adapters = {"lora_layers": LINEAR, "lora_rank": RANK, "lora_alpha": 2 * RANK, "model_dtype": "bf16"}
        onmt_llm.train(
            **shared,
            **adapters,
            **quantised,
            train_from=str(base),
            reset_optim="all",
            train_steps=options.updates,
            keep_checkpoint=0,
            save_model=str(folder / name),
        )
    rows = map(json.loads, (folder / f"{name}_metrics.jsonl").read_text().splitlines())
    times = [each["time"] for each in rows if each["split"] == "train"]
    return figures([after - before for before, after in pairwise(times)], method, options)


def transformers(method: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    size, device = SIZES[options.size], options.device
    config = LlamaConfig(
        vocab_size=size["vocab"],
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=size["ffn"],
        max_position_embeddings=size["length"],
    )
    saved = folder / "hf"
    if method == "full":
        model = LlamaForCausalLM(config).to(device, torch.bfloat16)
    else:
        if not saved.exists():
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(saved)
        bits = {
            "lora over 8 bits": BitsAndBytesConfig(load_in_8bit=True),
            "lora over 4 bits": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
            ),
        }
        base = AutoModelForCausalLM.from_pretrained(
            saved, dtype=torch.bfloat16, device_map=device, quantization_config=bits.get(method)
        )
        model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    times = []
    for _ in range(options.updates):
        ids = torch.randint(0, size["vocab"], (size["rows"], size["length"]), device=device)
        started = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return figures(times, method, options)


def figures(seconds: list[float], method: str, options: argparse.Namespace) -> dict[str, float]:
    """Speed, share of the peak and peak memory of this process."""
    from onmt_llm.training.metrics.mfu import matmul_peak
    from onmt_llm.training.process.host_memory import peak_memory

    size = SIZES[options.size]
    speed = size["rows"] * size["length"] / statistics.median(seconds[len(seconds) // 4 :])
    memory = peak_memory(options.device)
    peak = matmul_peak(torch.device("cuda"), torch.bfloat16) if options.device == "cuda" else 0.0
    block = 4 * size["hidden"] ** 2 + 3 * size["hidden"] * size["ffn"]
    weights = size["layers"] * block + size["vocab"] * size["hidden"]
    operations = (6 if method == "full" else 4) * weights
    share = speed * operations / peak if peak else 0.0
    return {"speed": speed, "share": share, "memory": memory.get("peak_cuda", max(memory.values()))}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


PROGRAMS = {"onmt_llm": ours, "transformers + peft": transformers}


if __name__ == "__main__":
    main()
