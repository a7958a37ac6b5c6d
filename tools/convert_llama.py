#!/usr/bin/env python3
"""LLaMA weights (Meta's consolidated.NN.pth or Hugging Face's files) to a checkpoint: onmt_llm_convert."""

from onmt_llm.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
