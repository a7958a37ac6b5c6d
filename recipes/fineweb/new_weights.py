"""A model with the architecture and the tokeniser of another one, and new weights, in the files of Hugging Face.

    python recipes/fineweb/new_weights.py Meta-Llama-3-8B llama-new-hf

8 billion weights in bfloat16 take 16 GB of memory.
"""

from __future__ import annotations

import argparse

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model with new weights.")
    parser.add_argument("model", help="folder of a Hugging Face model; its weights are not read")
    parser.add_argument("output")
    parser.add_argument("-seed", type=int, default=42)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    config = transformers.AutoConfig.from_pretrained(arguments.model)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(arguments.output)
    transformers.AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
