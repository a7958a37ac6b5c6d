#!/usr/bin/env python3
"""Convert Falcon weights (Hugging Face format) to a checkpoint: onmt_llm_convert."""

from onmt_llm.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
