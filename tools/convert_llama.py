#!/usr/bin/env python3
"""Convert LLaMA weights (Meta's consolidated.NN.pth or Hugging Face format) to a checkpoint: onmt_llm_convert."""

from onmt_llm.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
