"""Generation on one GPU, beside transformers (the second part of `make bench-gpu`).

    python docs/benchmarks/gpu_generation.py [-size 1b|3b|tiny] [-device cuda|cpu] [-only NAME ...]

A LLaMA with random weights in bf16, the same in all programs, reads 64 random tokens and writes 128, greedily, for one
and for 16 prompts. Every program runs in a process of its own; the first answer is not counted. `-size tiny -device
cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu import SIZES, device_name

PROMPT, ANSWER = 64, 128
BATCHES = (1, 16)
Generate = Callable[[list[list[int]], int], Any]


def make(folder: Path, size: dict[str, int], device: str) -> None:
    """The model for transformers and as our checkpoint."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = LlamaConfig(
        vocab_size=size["vocab"],
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=size["ffn"],
        max_position_embeddings=1024,
    )
    with torch.device(device):
        network = LlamaForCausalLM(shape).to(torch.bfloat16)
    network.save_pretrained(folder / "hf")
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(size["vocab"] - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.ByteLevel()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "hf")
    command = ["onmt_llm.cli.convert", "-model_dir", "hf", "-output", "ours"]
    subprocess.run([sys.executable, "-m", *command], cwd=folder, check=True, capture_output=True)


def ours(folder: Path, device: str, *, cuda_graphs: bool) -> Generate:
    from onmt_llm.config.generate import GenerationConfig
    from onmt_llm.generate.open import open_engine

    engine = open_engine(folder / "ours", device=device, prompt_lookup=False, cuda_graphs=cuda_graphs)

    def generate(prompts: list[list[int]], tokens: int) -> Any:
        words = [[engine.codec.vocab[token] for token in prompt] for prompt in prompts]
        return engine.generate(words, GenerationConfig(max_length=tokens, min_length=tokens, random_sampling_topk=1))

    return generate


def transformers(folder: Path, device: str) -> Generate:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.bfloat16).to(device).eval()

    def generate(prompts: list[list[int]], tokens: int) -> Any:
        ids = torch.tensor(prompts, device=device)
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **lengths)

    return generate


PROGRAMS: dict[str, Callable[[Path, str], Generate]] = {
    "onmt_llm": lambda folder, device: ours(folder, device, cuda_graphs=False),
    "onmt_llm, CUDA graphs": lambda folder, device: ours(folder, device, cuda_graphs=True),
    "transformers": transformers,
}


def measure(generate: Generate, batch: int, vocab: int, device: str) -> dict[str, float]:
    rng = random.Random(1)
    prompts = [[rng.randrange(4, vocab) for _ in range(PROMPT)] for _ in range(batch)]

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        generate(prompts, tokens)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds(ANSWER)
    first, whole = seconds(1), seconds(ANSWER)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"first": first, "speed": batch * ANSWER / whole, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-size", choices=SIZES, default="1b")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("-only", nargs="*", default=[], help="programs")
    parser.add_argument("-worker", nargs=2, metavar=("PROGRAM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = SIZES[options.size]
    if options.worker:
        program, folder = options.worker
        generate = PROGRAMS[program](Path(folder), options.device)
        print(json.dumps([measure(generate, batch, size["vocab"], options.device) for batch in BATCHES]))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a CUDA card, and there is none: nothing was measured.")
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), size, options.device)
        print(f"{device_name(options.device)}, torch {torch.__version__}\n")
        print("| program | prompts | first token | tokens/s | peak memory |\n|---|--:|--:|--:|--:|")
        for program in options.only or PROGRAMS:
            command = [sys.executable, *sys.argv, "-worker", program, folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"| {program} | failed: {done.stderr.strip().splitlines()[-1]} | | | |")
                continue
            for batch, found in zip(BATCHES, json.loads(done.stdout.strip().splitlines()[-1]), strict=True):
                figures = f"{found['first']:.3f} s | {found['speed']:,.0f} | {found['memory'] / 2**30:.2f} GiB"
                print(f"| {program} | {batch} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
