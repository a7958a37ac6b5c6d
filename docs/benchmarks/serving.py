"""The server under load: throughput against one offline batch, refusals, and memory.

`python docs/benchmarks/serving.py MODEL [-clients 16] [-requests 64] [-tokens 32] [-answers 2000]` starts
`onmt_llm_serve` on a free port of this machine and prints

- tokens per second, and per second of processor time, of `requests` answers to `clients` clients at once; and the same
  for `Engine.generate` in this process with batches of `clients`;
- the time until a request to a full queue is refused;
- the server's memory after a tenth of `answers` short answers, and after all of them.

Compare processor time where the machine does other work too.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine

WORDS = ["river", "stone", "morning", "letter", "winter", "garden", "market", "silver", "window", "bridge", "forest"]
QUEUE = 64


def prompts(count: int, words: int = 24) -> list[str]:
    return [" ".join(WORDS[(number * 7 + word * (number % 5 + 1)) % len(WORDS)] for word in range(words))
            for number in range(count)]  # fmt: skip


@contextmanager
def server(model: str, threads: int) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "serve.yaml"), Path(folder, "log")
        config.write_text(
            f"models: {{model: {{model: {Path(model).resolve()}, engine: {{threads: {threads}}}}}}}\n"
            f"port: 0\naccess_log: ''\nmax_queue: {QUEUE}\n"
        )
        words = [sys.executable, "-m", "onmt_llm.cli.serve", "-config", str(config)]
        with open(log, "wb") as stream:
            process = subprocess.Popen(words, stderr=stream)
        try:
            while not (found := re.search(r"Serving at (http://\S+)", log.read_text())):
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.1)
            limits = httpx.Limits(max_connections=256)
            with httpx.Client(base_url=found[1], timeout=None, limits=limits) as client:
                yield client, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def complete(client: httpx.Client, prompt: str, tokens: int) -> httpx.Response:
    body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0}
    return client.post("/v1/completions", json=body)


def measured(processor: Callable[[], float], work: Callable[[], int]) -> tuple[float, float]:
    """Tokens per second, and per second of processor time."""
    begun, used = time.perf_counter(), processor()
    tokens = work()
    return tokens / (time.perf_counter() - begun), tokens / (processor() - used)


def throughput(client: httpx.Client, process: psutil.Process, texts: Sequence[str], clients: int, tokens: int) -> Any:
    def work() -> int:
        with ThreadPoolExecutor(clients) as threads:
            answers = list(threads.map(lambda text: complete(client, text, tokens).json(), texts))
        return sum(answer["usage"]["completion_tokens"] for answer in answers)

    return measured(lambda: sum(process.cpu_times()[:2]), work)


def offline(model: str, threads: int, texts: Sequence[str], batch_size: int, tokens: int) -> tuple[float, float]:
    engine = open_engine(model, threads=threads)
    options = GenerationConfig(max_length=tokens, min_length=tokens)
    encoded = [engine.codec.encode(text) for text in texts]
    engine.generate(encoded[:2], options)

    def work() -> int:
        answers = engine.generate(encoded, options, batch_size=batch_size)
        return sum(len(hypotheses[0].tokens) for hypotheses in answers)

    return measured(time.process_time, work)


def refusals(client: httpx.Client, tokens: int, tries: int = 40) -> list[float]:
    """Milliseconds until each refusal of a full queue, which clients that come again keep full."""
    found: list[float] = []
    waiting = 2 * QUEUE
    enough = threading.Event()

    def insist(text: str) -> None:
        while complete(client, text, 8 * tokens).status_code == 429 and not enough.wait(1):
            continue

    with ThreadPoolExecutor(waiting) as threads:
        running = [threads.submit(insist, text) for text in prompts(waiting)]
        time.sleep(5)
        while not all(each.done() for each in running) and len(found) < tries:
            begun = time.perf_counter()
            if complete(client, "a", 1).status_code == 429:
                found.append((time.perf_counter() - begun) * 1000)
        enough.set()
    return found


def memory(client: httpx.Client, process: psutil.Process, answers: int, clients: int) -> tuple[float, float]:
    """MiB after a tenth of the answers, and after all."""
    sizes = []
    for count in (answers // 10, answers - answers // 10):
        with ThreadPoolExecutor(clients) as threads:
            statuses = list(threads.map(lambda text: complete(client, text, 4).status_code, prompts(count, 8)))
        assert set(statuses) == {200}, set(statuses)
        sizes.append(process.memory_info().rss / 2**20)
    return sizes[0], sizes[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, default in (("clients", 16), ("requests", 64), ("tokens", 32), ("answers", 2000), ("threads", 1)):
        parser.add_argument(f"-{name}", type=int, default=default)
    given = parser.parse_args()
    texts = prompts(given.requests)
    alone = offline(given.model, given.threads, texts, given.clients, given.tokens)
    with server(given.model, given.threads) as (client, process):
        complete(client, texts[0], 2)
        served = throughput(client, process, texts, given.clients, given.tokens)
        print("| | tokens/s | tokens per processor second |\n|---|--:|--:|")
        print(f"| offline batches of {given.clients} | {alone[0]:.1f} | {alone[1]:.1f} |")
        print(f"| {given.clients} clients of the server | {served[0]:.1f} | {served[1]:.1f} |")
        print(f"| ratio | {served[0] / alone[0]:.2f} | {served[1] / alone[1]:.2f} |\n")
        times = sorted(refusals(client, given.tokens))
        if times:
            print(
                f"{len(times)} refusals (429): median {statistics.median(times):.0f} ms, slowest {times[-1]:.0f} ms\n"
            )
        if given.answers:
            before, after = memory(client, process, given.answers, given.clients)
            print(f"memory after {given.answers // 10} answers {before:.0f} MiB, after {given.answers} {after:.0f} MiB "
                  f"({(after / before - 1) * 100:+.1f}%)")  # fmt: skip


if __name__ == "__main__":
    main()
