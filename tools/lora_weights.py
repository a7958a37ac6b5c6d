#!/usr/bin/env python3
"""Merge LoRA weights into their base model, or combine both in one checkpoint: onmt_llm_lora."""

from onmt_llm.cli.lora import main

if __name__ == "__main__":
    raise SystemExit(main())
