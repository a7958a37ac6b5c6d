"""Start-up time of commands: `--help`, and a configuration error.

`python docs/benchmarks/start.py [RUNS]` prints the median and the range of the wall time of whole processes, and of
`import torch` for comparison.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "broken.yaml"
        broken.write_text("lora_rnak: 4\n")
        train = str(BIN / "onmt_llm_train")
        cases = {
            "onmt_llm_train --help": [train, "--help"],
            "onmt_llm_train -config broken.yaml": [train, "-config", str(broken)],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        }
        print("| command | median s | min | max |\n|---|--:|--:|--:|")
        for name, command in cases.items():
            times = [seconds(command) for _ in range(runs)]
            print(f"| `{name}` | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")


if __name__ == "__main__":
    main()
