"""Peak memory of a conversion whose largest tensors have 200 MiB.

`python docs/benchmarks/conversion.py` writes a Hugging Face LLaMA with one block in bf16, width 1,024, feed-forward
width 102,400 (three matrices of 200 MiB each), converts it in a process of its own, and prints that process's peak RSS,
with the memory of Python, torch and this package apart. malloc is set to return every larger block at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models

MIB = 1 << 20
WIDTH, FFN, VOCAB = 1024, 102_400, 64
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "tie_word_embeddings": True,
}
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, WIDTH),
    "model.norm.weight": (WIDTH,),
    "model.layers.0.input_layernorm.weight": (WIDTH,),
    "model.layers.0.post_attention_layernorm.weight": (WIDTH,),
    **{f"model.layers.0.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"},
    "model.layers.0.mlp.gate_proj.weight": (FFN, WIDTH),
    "model.layers.0.mlp.up_proj.weight": (FFN, WIDTH),
    "model.layers.0.mlp.down_proj.weight": (WIDTH, FFN),
}

CONVERT = """
import re, sys
from pathlib import Path
from onmt_llm.checkpoint.convert import convert

def peak():  # getrusage would count the parent's memory before exec too
    return re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]

before = peak()
convert(sys.argv[1], sys.argv[2])
print(before, peak())
"""


def write_model(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(directory / "tokenizer.json"))
    tensors = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    save_file(tensors, directory / "model.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "hf")
        exact = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
        command = [sys.executable, "-c", CONVERT, str(Path(scratch) / "hf"), str(Path(scratch) / "ours")]
        output = subprocess.run(command, env={**os.environ, **exact}, check=True, capture_output=True, text=True)
        before, peak = (1024 * int(word) / MIB for word in output.stdout.split()[-2:])
        print(f"peak {peak:,.0f} MiB, of which {before:,.0f} before the conversion")


if __name__ == "__main__":
    main()
