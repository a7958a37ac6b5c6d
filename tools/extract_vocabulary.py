#!/usr/bin/env python3
"""Write a checkpoint's vocabulary to a text file: onmt_llm_checkpoint extract_vocabulary."""

import sys

from onmt_llm.cli.checkpoint import main

if __name__ == "__main__":
    raise SystemExit(main(["extract_vocabulary", *sys.argv[1:]]))
