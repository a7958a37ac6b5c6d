"""What the torch engine saves by what it has read: the next turn of a chat, stopping, and prompt lookup.

    python docs/benchmarks/prompt_reuse.py -model CHECKPOINT [-release CT2_RELEASE] [-precision int8] [-threads 2]

CHECKPOINT is SmolLM2-135M-Instruct as converted by `make demo` (demo/base), CT2_RELEASE its release (demo/base_ct2).
Each figure is the median of `-rounds`; the two sides of a ratio alternate. With `-clock cpu` seconds are those of the
processor, for a machine that is not idle (then with `-threads 1`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import onmt_llm
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.engine import Engine
from onmt_llm.generate.open import open_engine
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.message import Message

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (512, 1024, 2048)
FIRST = GenerationConfig(max_length=16, min_length=16)
ANSWER = GenerationConfig(max_length=128, min_length=128)
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
TASKS = {
    "repetitive: a text is copied": "Repeat this text word for word:\n\n{text}",
    "other: a story is written": "Write a story about a lighthouse keeper, his daughter and a storm in winter.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-model", required=True)
    parser.add_argument("-release")
    parser.add_argument("-precision", default=None, choices=["fp32", "bf16", "int8"])
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-rounds", type=int, default=3)
    parser.add_argument("-clock", default="wall", choices=CLOCKS)
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    opened = open_engine(
        arguments.model,
        device="cpu",
        compute_type="int8" if arguments.precision == "int8" else "auto",
        dtype=arguments.precision if arguments.precision != "int8" else None,
        threads=arguments.threads,
    )
    assert isinstance(opened, TorchEngine)
    list(opened.stream(opened.codec.encode("Hello"), FIRST))
    print(f"onmt_llm {onmt_llm.__version__}, {arguments.threads} threads, {arguments.clock} seconds\n")
    engines = {"torch": lambda: TorchEngine(opened.model, opened.codec, prefix_cache=2**28)}
    if arguments.release:
        release = open_engine(arguments.release, device="cpu", threads=arguments.threads)
        engines["CTranslate2"] = lambda: release  # type: ignore[assignment,return-value]
    print("| engine | tokens | first token, cold (s) | next turn (s) | ratio |\n|---|--:|--:|--:|--:|")
    for name, build in engines.items():
        for length in LENGTHS:
            print(f"| {name} | {turns(build, length, arguments.rounds, clock)} |", flush=True)
    prompt = conversation(opened.codec, LENGTHS[-1])
    stopped = first_delta(TorchEngine(opened.model, opened.codec), prompt, clock, stop=True)
    print(f"\nStop while {len(prompt)} tokens are read: {stopped:.2f} s\n")
    print("| text | plain (tokens/s) | prompt lookup (tokens/s) | ratio | same answer |\n|---|--:|--:|--:|---|")
    for name, task in TASKS.items():
        print(f"| {name} | {lookup(opened, task, arguments.rounds, clock)} |", flush=True)


def first_delta(engine: Engine, prompt: list[str], clock: Callable[[], float], *, stop: bool = False) -> float:
    """Seconds to the first piece of an answer, or to its end if it is stopped at once."""
    start = clock()
    next(iter(engine.stream(prompt, FIRST, should_stop=lambda: stop)))
    return clock() - start


def conversation(codec: Codec, length: int, *answers: str) -> list[str]:
    """A prompt of about `length` tokens; with an answer to it, the turn after that."""
    tokens = codec.encode("\n\n".join((ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")))
    messages = [Message("user", codec.decode(tokens[:length]))]
    for answer in answers:
        messages += [Message("assistant", answer), Message("user", "Say that in one sentence.")]
    return codec.encode_chat(messages)


def turns(build: Callable[[], Engine], length: int, rounds: int, clock: Callable[[], float]) -> str:
    """Length of the second turn, seconds to its first token with a new engine and with one that has seen the first."""
    cold, warm = [], []
    for _ in range(rounds):
        engine = build()
        answer = "".join(delta.text for delta in engine.stream(conversation(engine.codec, length), FIRST))
        prompt = conversation(engine.codec, length, answer)
        warm.append(first_delta(engine, prompt, clock))
        cold.append(first_delta(build(), prompt, clock))
    before, after = statistics.median(cold), statistics.median(warm)
    return f"{len(prompt)} | {before:.2f} | {after:.2f} | {after / before:.3f}"


def lookup(opened: TorchEngine, task: str, rounds: int, clock: Callable[[], float]) -> str:
    """Tokens per second without and with prompt lookup, from the first token on."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")[:900]
    prompt = opened.codec.encode_chat([Message("user", task.format(text=text))])
    speeds: dict[bool, list[float]] = defaultdict(list)
    answers = {}
    for _ in range(rounds):
        for guesses in (False, True):
            stream = TorchEngine(opened.model, opened.codec, prompt_lookup=guesses).stream(prompt, ANSWER)
            first = next(iter(stream)).text
            start = clock()
            answers[guesses] = first + "".join(delta.text for delta in stream)
            speeds[guesses].append((ANSWER.max_length - 1) / (clock() - start))
    plain, guessed = (statistics.median(speeds[guesses]) for guesses in (False, True))
    same = "yes" if answers[False] == answers[True] else "no"
    return f"{plain:.1f} | {guessed:.1f} | {guessed / plain:.2f} | {same}"


if __name__ == "__main__":
    main()
