#!/usr/bin/env python3
"""Average the weights of several checkpoints: onmt_llm_checkpoint average."""

import sys

from onmt_llm.cli.checkpoint import main

if __name__ == "__main__":
    raise SystemExit(main(["average", *sys.argv[1:]]))
