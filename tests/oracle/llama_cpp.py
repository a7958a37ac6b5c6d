"""Write the logits of llama.cpp, or the ids of texts: python llama_cpp.py MODEL.gguf IDS.json OUTPUT.npy, or MODEL.gguf
TEXTS.json OUTPUT.json. Needs the package `cyllama`.

A process of its own for each file, since the library ends the process where it fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cyllama.llama.llama_cpp as library
import numpy as np


class Model(library.LlamaModel):
    """The binding's contexts ask for `n_vocab`, which its models do not have."""

    @property
    def n_vocab(self) -> int:
        return self.get_vocab().n_vocab


def main(file: str, given: str, output: str) -> None:
    content = json.loads(Path(given).read_text())
    library.disable_logging()
    settings = library.LlamaModelParams()
    settings.n_gpu_layers = 0
    model = Model(file, settings, False)
    if output.endswith(".json"):
        Path(output).write_text(json.dumps([model.get_vocab().tokenize(text, True, False) for text in content]))
    else:
        np.save(output, logits(model, content))


def logits(model: Model, ids: list[int]) -> np.ndarray:
    options = library.LlamaContextParams()
    options.n_ctx = options.n_batch = options.n_ubatch = max(64, len(ids))
    options.n_threads = options.n_threads_batch = 1
    options.flash_attn_type = 0
    options.type_k = options.type_v = 0  # keys and values in float32
    context = library.LlamaContext(model, options, False)
    batch = library.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for position, token in enumerate(ids):
        batch.add(token, position, [0], True)
    context.decode(batch)
    rows = [np.array(context.get_logits_ith(row), dtype=np.float32)[: model.n_vocab] for row in range(len(ids))]
    return np.stack(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
