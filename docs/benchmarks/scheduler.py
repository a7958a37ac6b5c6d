"""Throughput of mixed requests through the scheduler, against the same prompts in offline batches.

    python docs/benchmarks/scheduler.py MODEL [MODEL ...] [-requests 64] [-rounds 1]

MODEL is a checkpoint or a CTranslate2 release of a decoder-only model. The requests have prompts of 8 to 128 random
tokens and four kinds of options in turn; every answer has its `max_length`, so that both ways make as many
tokens. Offline, `Engine.generate` answers the requests of one kind after those of another, 16 prompts at a time; the
scheduler gets all requests at once. Both run in turn, in `-rounds` rounds, of which the best counts. CPU time is of
the process: compare it where other programs run. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.engine import Engine
from onmt_llm.generate.open import open_engine
from onmt_llm.generate.scheduling.scheduler import Scheduler
from onmt_llm.generate.scheduling.ticket import Request

KINDS = [
    {"max_length": 32},
    {"max_length": 24, "random_sampling_topk": 0, "random_sampling_temp": 0.8},
    {"max_length": 16, "repetition_penalty": 1.2},
    {"max_length": 32, "random_sampling_topk": 40, "random_sampling_topp": 0.9},
]


def make_requests(engine: Engine, count: int) -> list[Request]:
    """Prompts of random tokens, the same for every engine with this vocabulary."""
    chance = random.Random(1)
    start = engine.codec.source_frame[0]
    tokens = engine.codec.vocab.tokens(range(1000, 9000))
    made = []
    for number in range(count):
        options = KINDS[number % len(KINDS)]
        prompt = [*start, *chance.choices(tokens, k=chance.randrange(8, 128))]
        made.append(Request(prompt, GenerationConfig(**options, min_length=options["max_length"])))
    return made


def offline(engine: Engine, requests: Sequence[Request]) -> int:
    """Answer kind after kind; returns the number of tokens."""
    tokens = 0
    for kind in range(len(KINDS)):
        some = requests[kind :: len(KINDS)]
        found = engine.generate([request.prompt for request in some], some[0].options, batch_size=16)
        tokens += sum(len(answers[0].tokens) for answers in found)
    return tokens


def scheduled(engine: Engine, requests: Sequence[Request]) -> int:
    """Answer all through a scheduler; returns the number of tokens."""
    with Scheduler(engine, max_queue=len(requests)) as scheduler:
        tickets = [scheduler.submit(request) for request in requests]
        return sum(len(ticket.result()[0].tokens) for ticket in tickets)


def measure(
    way: Callable[[Engine, Sequence[Request]], int], engine: Engine, requests: Sequence[Request]
) -> list[float]:
    """Tokens per second of wall clock and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = way(engine, requests)
    return [tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("-requests", type=int, default=64)
    parser.add_argument("-rounds", type=int, default=1)
    parser.add_argument("-threads", type=int, default=0)
    arguments = parser.parse_args()
    print("| model | tokens/s offline | scheduler | | tokens/CPU s offline | scheduler | |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for model in arguments.models:
        engine = open_engine(model, device="cpu", threads=arguments.threads)
        requests = make_requests(engine, arguments.requests)
        engine.generate([requests[0].prompt], requests[0].options)  # the first call compiles and allocates
        rounds = [[measure(way, engine, requests) for way in (offline, scheduled)] for _ in range(arguments.rounds)]
        best = [[max(each[way][unit] for each in rounds) for way in range(2)] for unit in range(2)]
        cells = [f"{plain:.1f} | {ours:.1f} | {ours / plain:.2f}x" for plain, ours in best]
        print(f"| {model} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
