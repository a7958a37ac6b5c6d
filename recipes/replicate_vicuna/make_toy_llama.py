"""A LLaMA small enough for a test, in the layout of Meta's release: random weights, a real SentencePiece model.

    python recipes/replicate_vicuna/make_toy_llama.py llama

writes `llama/7B/consolidated.00.pth`, `llama/7B/params.json` and `llama/tokenizer.model`, so that every command of the
recipe runs as on the real weights. The tokeniser is trained on the two text files in `toy/` with Meta's settings:
BPE with byte fallback, so a line break is the piece `<0x0A>`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch

TEXTS = sorted((Path(__file__).parent / "toy").glob("*.txt"))

VOCAB_SIZE = 600
HIDDEN_SIZE = 64
LAYERS = 2
HEADS = 4
FFN_SIZE = 192

SPLIT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
SPLIT_COLUMNS = ("wo", "w2", "tok_embeddings")


@dataclass(frozen=True)
class ToyLlama:
    """Paths of the files for `--model_dir` and `--tokenizer_model` of `tools/convert_llama.py`."""

    model_dir: Path
    tokenizer_model: Path


def make_toy_llama(directory: str | Path, *, seed: int = 0, shards: int = 1) -> ToyLlama:
    """Write a toy LLaMA below `directory`.

    Args:
        directory: Made if it does not exist.
        seed: Of the weights.
        shards: Number of `consolidated.NN.pth` files, as Meta splits a model for tensor parallelism; must divide 4.
    """
    toy = ToyLlama(Path(directory) / "7B", Path(directory) / "tokenizer.model")
    toy.model_dir.mkdir(parents=True, exist_ok=True)
    train_tokenizer(toy.tokenizer_model)
    weights = random_weights(seed)
    for shard in range(shards):
        tensors = {name: _shard(name, weight, shard, shards) for name, weight in weights.items()}
        torch.save(tensors, toy.model_dir / f"consolidated.{shard:02d}.pth")
    params = {
        "dim": HIDDEN_SIZE,
        "multiple_of": 32,
        "n_heads": HEADS,
        "n_layers": LAYERS,
        "norm_eps": 1e-5,
        "vocab_size": -1,  # Meta takes it from the tokeniser
    }
    (toy.model_dir / "params.json").write_text(json.dumps(params), encoding="utf-8")
    return toy


def train_tokenizer(path: Path) -> None:
    """Train the SentencePiece model on the bundled texts and write it to `path`."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(),
            model_writer=file,
            model_type="bpe",
            vocab_size=VOCAB_SIZE,
            character_coverage=0.9995,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            num_threads=1,
            minloglevel=2,
        )


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """Random weights under Meta's names, in float16, scaled so that activations keep their size through the layers."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, std: float | None = None) -> torch.Tensor:
        weight = torch.randn(rows, columns, generator=generator) * (std or 1 / math.sqrt(columns))
        return weight.to(torch.float16)

    def norm() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(HIDDEN_SIZE, generator=generator)).to(torch.float16)

    weights = {"tok_embeddings.weight": matrix(VOCAB_SIZE, HIDDEN_SIZE, std=1.0)}
    for layer in range(LAYERS):
        prefix = f"layers.{layer}"
        weights |= {
            f"{prefix}.attention.{name}.weight": matrix(HIDDEN_SIZE, HIDDEN_SIZE) for name in ("wq", "wk", "wv", "wo")
        }
        weights |= {
            f"{prefix}.feed_forward.w1.weight": matrix(FFN_SIZE, HIDDEN_SIZE),
            f"{prefix}.feed_forward.w2.weight": matrix(HIDDEN_SIZE, FFN_SIZE),
            f"{prefix}.feed_forward.w3.weight": matrix(FFN_SIZE, HIDDEN_SIZE),
            f"{prefix}.attention_norm.weight": norm(),
            f"{prefix}.ffn_norm.weight": norm(),
        }
    weights |= {"norm.weight": norm(), "output.weight": matrix(VOCAB_SIZE, HIDDEN_SIZE)}
    head_dim = HIDDEN_SIZE // HEADS
    # not a parameter, but Meta's first release contains it, and a converter must ignore it
    weights["rope.freqs"] = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    return weights


def _shard(name: str, weight: torch.Tensor, shard: int, shards: int) -> torch.Tensor:
    """The part of a tensor in one of `shards` files."""
    layer = name.split(".")[-2]
    dim = 0 if layer in SPLIT_ROWS else 1 if layer in SPLIT_COLUMNS else None
    return weight if dim is None else weight.chunk(shards, dim)[shard].clone()


def _sentences() -> Iterator[str]:
    for path in TEXTS:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from filter(None, line.split("｟newline｠"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a toy LLaMA in the layout of Meta's release.")
    parser.add_argument("directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    arguments = parser.parse_args()
    toy = make_toy_llama(arguments.directory, seed=arguments.seed, shards=arguments.shards)
    print(f"{toy.model_dir}\n{toy.tokenizer_model}")


if __name__ == "__main__":
    main()
