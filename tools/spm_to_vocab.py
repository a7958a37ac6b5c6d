#!/usr/bin/env python3
"""Convert a SentencePiece .vocab on standard input to `token<TAB>count` lines, like OpenNMT-py's tool of this name.

onmt_llm does not need it: `src_vocab` reads a .vocab directly. Counts are the probabilities in millionths.
"""

import math
import sys

CONTROL = ("<unk>", "<s>", "</s>")


def main() -> int:
    sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    for line in sys.stdin:
        token, _, score = line.rstrip("\r\n").rpartition("\t")
        if token not in CONTROL:
            print(f"{token}\t{int(math.exp(float(score)) * 1_000_000) + 1}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
