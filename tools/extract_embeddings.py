#!/usr/bin/env python3
"""Write a checkpoint's embeddings to a text file: onmt_llm_checkpoint extract_embeddings."""

import sys

from onmt_llm.cli.checkpoint import main

if __name__ == "__main__":
    raise SystemExit(main(["extract_embeddings", *sys.argv[1:]]))
