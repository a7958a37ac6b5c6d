"""Speed and memory of generation: our engines beside bare CTranslate2, transformers and llama.cpp.

    python docs/benchmarks/generation.py CHECKPOINT WORK [-quick] [-only NAME ...]
    python docs/benchmarks/generation.py CHECKPOINT WORK -quality TEXT

A prompt of 64 tokens, 128 new ones, greedy search without an end. Each contender runs in processes of its own, one
after the other: for one and for 16 prompts, with two threads (seconds of the clock) and with one (seconds of the CPU,
which other processes disturb less). The formats that others read are made in WORK, or taken from there. `-quick`
measures 24 new tokens with one thread, in about three minutes. llama.cpp needs the package `cyllama`.

`-quality` compares the torch engine's number formats with float32 on the first 2,048 tokens of the second half of TEXT,
in windows of 256.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = 64
BATCHES = (1, 16)
Generate = Callable[[list[list[int]], int], None]
"""Generates so many tokens for each of the prompts, given as token ids."""


def ours(model: Path, threads: int, **options: Any) -> Generate:
    from onmt_llm.config.generate import GenerationConfig
    from onmt_llm.generate.open import open_engine

    # Greedy answers to random words soon repeat themselves, and prompt lookup would guess them.
    engine = open_engine(model, device="cpu", threads=threads, prompt_lookup=False, **options)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        words = [[engine.codec.vocab[token] for token in prompt] for prompt in prompts]
        found = engine.generate(words, GenerationConfig(max_length=tokens, min_length=tokens, random_sampling_topk=1))
        assert all(len(answers[0].tokens) == tokens for answers in found)

    return generate


def bare_ctranslate2(model: Path, threads: int) -> Generate:
    import ctranslate2

    generator = ctranslate2.Generator(str(model), device="cpu", compute_type="int8", intra_threads=threads)
    vocab = json.loads((model / "vocabulary.json").read_text("utf-8"))

    def generate(prompts: list[list[int]], tokens: int) -> None:
        words = [[vocab[token] for token in prompt] for prompt in prompts]
        lengths = {"max_length": tokens, "min_length": tokens, "include_prompt_in_result": False}
        found = generator.generate_batch(words, **lengths)
        assert all(len(answer.sequences_ids[0]) == tokens for answer in found)

    return generate


def transformers(model: Path, threads: int, dtype: str) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(prompts)
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        found = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **lengths)
        assert found.shape[1] == len(prompts[0]) + tokens

    return generate


def llama_cpp(model: Path, threads: int) -> Generate:
    import cyllama.llama.llama_cpp as library

    library.disable_logging()
    settings = library.LlamaModelParams()
    settings.n_gpu_layers = 0
    network = library.LlamaModel(str(model), settings, False)
    options = library.LlamaContextParams()
    options.n_ctx, options.n_batch, options.n_threads, options.n_threads_batch = 512, 512, threads, threads
    context = library.LlamaContext(network, options, False)
    greedy = library.LlamaSampler(library.LlamaSamplerChainParams())
    greedy.add_greedy()

    def generate(prompts: list[list[int]], tokens: int) -> None:
        (prompt,) = prompts
        context.kv_cache_clear()
        batch = library.LlamaBatch(n_tokens=PROMPT, embd=0, n_seq_max=1)
        for position, token in enumerate(prompt):
            batch.add(token, position, [0], position == PROMPT - 1)
        place = PROMPT - 1
        for step in range(tokens):
            context.decode(batch)
            newest = greedy.sample(context, place)
            batch.clear()
            batch.add(newest, PROMPT + step, [0], True)
            place = 0

    return generate


FORMATS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "fp32"},
    "bf16": {"dtype": "bf16"},
    "int8": {"compute_type": "int8"},
    "int4": {"compute_type": "int4"},
}

CONTENDERS: dict[str, tuple[str, Callable[..., Generate], dict[str, Any]]] = {
    "onmt_llm torch float32": ("checkpoint", ours, FORMATS["float32"]),
    "onmt_llm torch bf16": ("checkpoint", ours, FORMATS["bf16"]),
    "onmt_llm torch int8": ("checkpoint", ours, FORMATS["int8"]),
    "onmt_llm torch int4": ("checkpoint", ours, FORMATS["int4"]),
    "onmt_llm CTranslate2 int8": ("ct2", ours, {"compute_type": "int8"}),
    "ctranslate2 int8": ("ct2", bare_ctranslate2, {}),
    "transformers float32": ("hf", transformers, {"dtype": "float32"}),
    "transformers bf16": ("hf", transformers, {"dtype": "bfloat16"}),
    "llama.cpp Q8_0": ("q8_0.gguf", llama_cpp, {}),
}


def prepare(checkpoint: Path, work: Path) -> None:
    """Write the model in the formats of all contenders."""
    from onmt_llm.checkpoint.formats.gguf.write import export_gguf
    from onmt_llm.checkpoint.formats.huggingface.write import export_hf
    from onmt_llm.releasing import release

    work.mkdir(parents=True, exist_ok=True)
    if not (work / "checkpoint").exists():
        (work / "checkpoint").symlink_to(checkpoint.resolve())
    if not (work / "ct2").exists():
        release(checkpoint, work / "ct2", quantization="int8", verify="off")
    if not (work / "hf").exists():
        export_hf(checkpoint, work / "hf")
    if not (work / "q8_0.gguf").exists():
        export_gguf(checkpoint, work / "q8_0.gguf", type="q8_0")


def measure(name: str, work: Path, rows: int, threads: int, tokens: int) -> dict[str, float]:
    """Seconds to the first token, tokens per second, and MiB at the peak: the better of two runs after a short one."""
    source, build, options = CONTENDERS[name]
    generate = build(work / source, threads, **options)
    prompts = [[(1 + 7919 * (PROMPT * row + place)) % 40000 + 1000 for place in range(PROMPT)] for row in range(rows)]
    clock = time.process_time if threads == 1 else time.perf_counter
    generate(prompts, 2)
    first, whole = [], []
    for _ in range(2):
        for new, seconds in ((1, first), (tokens, whole)):
            start = clock()
            generate(prompts, new)
            seconds.append(clock() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": min(first), "rate": rows * tokens / min(whole), "peak": peak}


def measured_apart(name: str, args: argparse.Namespace, rows: int, threads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, str(args.checkpoint), str(args.work), "-measure", name]
    numbers = [*("-rows", str(rows)), *("-threads", str(threads)), *("-tokens", str(args.tokens))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*command, *numbers], capture_output=True, text=True, check=False, env=environment)
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def compare_quality(checkpoint: Path, text_file: Path, tokens: int = 2048, window: int = 256) -> None:
    """Print the mean divergence from float32 (KL), and how often the best token is the same."""
    import torch

    from onmt_llm.generate.open import open_engine

    engines = {name: open_engine(checkpoint, device="cpu", **options) for name, options in FORMATS.items()}
    text = text_file.read_text("utf-8")
    words = engines["float32"].codec.encode(text[len(text) // 2 :][: 8 * tokens])[:tokens]
    print("| number format | mean KL | same best token, % |\n|---|--:|--:|")
    log_probs = {
        name: torch.cat(
            [
                torch.from_numpy(engine.logits(words[start : start + window])).log_softmax(dim=-1)
                for start in range(0, len(words), window)
            ]
        )
        for name, engine in engines.items()
    }
    exact = log_probs.pop("float32")
    for name, found in log_probs.items():
        divergence = torch.nn.functional.kl_div(found, exact, log_target=True, reduction="batchmean")
        same = (found.argmax(dim=-1) == exact.argmax(dim=-1)).float().mean()
        print(f"| {name} | {divergence:.5f} | {100 * same:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("-quick", action="store_true")
    parser.add_argument("-only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("-quality", type=Path, metavar="TEXT")
    parser.add_argument("-tokens", type=int, default=0)
    parser.add_argument("-measure", help=argparse.SUPPRESS)
    parser.add_argument("-rows", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("-threads", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.tokens = args.tokens or (24 if args.quick else 128)
    if args.measure:
        print(json.dumps(measure(args.measure, args.work, args.rows, args.threads, args.tokens)), flush=True)
        os._exit(0)  # some of these libraries fail to end
    if args.quality:
        compare_quality(args.checkpoint, args.quality)
        return
    prepare(args.checkpoint, args.work)
    threads = (1,) if args.quick else (2, 1)
    heads = [
        f"{rows} prompt{'s' if rows > 1 else ''}: {text}"
        for rows in BATCHES
        for text in ("MiB", *(f"{unit}, {n} thread{'s' if n > 1 else ''}" for n in threads for unit in units(n)))
    ]
    print("| contender | " + " | ".join(heads) + " |\n|---" + "|--:" * len(heads) + "|", flush=True)
    for name in args.only:
        cells = []
        for rows in BATCHES:
            if rows > 1 and CONTENDERS[name][1] is llama_cpp:  # its binding ends the process in the second step
                cells += [""] * (1 + 2 * len(threads))
                continue
            found = [measured_apart(name, args, rows, n) for n in threads]
            cells.append(f"{max(one['peak'] for one in found):.0f}")
            for one in found:
                cells += [f"{one['first']:.2f}", f"{one['rate']:.1f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def units(threads: int) -> tuple[str, str]:
    return ("s to the first token", "tokens/s") if threads > 1 else ("CPU s to the first token", "tokens/CPU s")


if __name__ == "__main__":
    main()
