"""Training and generation on an idle machine and beside busy processes, by the wait policy of torch's threads.

    python docs/benchmarks/neighbours.py -model CHECKPOINT [-neighbours 0 1 4] [-rounds 2]

CHECKPOINT is SmolLM2-135M-Instruct as converted by `make demo` (demo/base). Each row is a separate process, started
after its neighbours (busy loops); the policies alternate within a round. `ours` is the commands' default behaviour
(onmt_llm/nn/cpu/openmp.py), `spin` torch's default, `passive` is OMP_WAIT_POLICY=PASSIVE. `share` is the speed over
that of `spin` on the idle machine (`-quiet TRAIN GENERATE` if this run does not measure it), divided by the share of
the processors that a fair scheduler gives torch's threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/quickstart/quickstart.yaml"
# GOMP_SPINCOUNT with libgomp's default value keeps the default, and marks it as the user's choice.
POLICIES = {"ours": {}, "spin": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
GENERATE = """
import sys, time, onmt_llm
from onmt_llm.config.generate import GenerationConfig
engine = onmt_llm.open_engine(sys.argv[1])
prompts = [engine.codec.encode(f"Tell me a story about the number {i} and the sea") for i in range(16)]
options = GenerationConfig(max_length=24, min_length=24)
engine.generate(prompts[:2], options)
start = time.perf_counter()
answers = engine.generate(prompts, options, batch_size=8)
print(sum(len(a[0].tokens) for a in answers) / (time.perf_counter() - start))
"""


def train(model: Path, policy: dict[str, str], updates: int) -> float:
    """Trained tokens per second, without the first updates."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("onmt_llm_train")),
            "-config",
            str(RECIPE),
            "-train_from",
            str(model),
        ]
        command += ["-save_model", f"{folder}/adapter", "-train_steps", str(updates), "-report_every", "2"]
        command += ["-valid_steps", "10000", "-save_checkpoint_steps", "10000"]
        subprocess.run(command, env={**os.environ, **policy}, cwd=ROOT, check=True, capture_output=True)
        rows = [json.loads(line) for line in Path(folder, "adapter_metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    return sum(row["tokens"] for row in rows[1:]) / (rows[-1]["elapsed"] - rows[0]["elapsed"])


def generate(model: Path, policy: dict[str, str], updates: int) -> float:
    """Answer tokens per second, eight answers at a time."""
    command = [sys.executable, "-c", GENERATE, str(model)]
    run = subprocess.run(command, env={**os.environ, **policy}, check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-model", type=Path, required=True)
    parser.add_argument("-neighbours", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("-policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("-rounds", type=int, default=2)
    parser.add_argument("-updates", type=int, default=10)
    parser.add_argument("-quiet", type=float, nargs=2, default=[float("nan")] * 2, help="tokens/s on the idle machine")
    arguments = parser.parse_args()
    speeds: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for count in arguments.neighbours:
            for policy in arguments.policies:
                for job in (train, generate):
                    with busy_processes(count):
                        speed = job(arguments.model, POLICIES[policy], arguments.updates)
                    speeds[job.__name__, count, policy].append(speed)
                    print(f"{job.__name__}, {count} neighbours, {policy}: {speed:.1f} tokens/s", flush=True)
    quiet = dict(zip(("train", "generate"), arguments.quiet, strict=True))
    quiet |= {job: statistics.median(speeds[job, 0, "spin"]) for job in quiet if (job, 0, "spin") in speeds}
    print(table(speeds, quiet, arguments.neighbours, arguments.policies))


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` endless loops."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def table(
    speeds: dict[tuple[str, int, str], list[float]], quiet: dict[str, float], neighbours: list[int], policies: list[str]
) -> str:
    """The medians, and their shares of what a fair scheduler would leave of the speed on the idle machine (`quiet`)."""
    cores = len(os.sched_getaffinity(0))
    speed_columns, share_columns = (
        " | ".join(f"{name}, {unit}" for name in policies) for unit in ("tokens/s", "share")
    )
    lines = [
        f"| job | other busy processes | {speed_columns} | {share_columns} |",
        "|---|--:" + "|--:" * 2 * len(policies) + "|",
    ]
    for job in ("train", "generate"):
        for count in neighbours:
            medians = [statistics.median(speeds[job, count, name]) for name in policies]
            fair = quiet[job] * cores / (cores + count)
            cells = [f"{speed:.1f}" for speed in medians] + [f"{speed / fair:.0%}" for speed in medians]
            lines.append(f"| {job} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
