"""A language model small enough for a test, in the files of Hugging Face: random weights, a tokeniser trained on texts.

    python recipes/make_toy_model.py toy/hf -family llama -texts data/*.txt

The recipes use it instead of the models of 7 or 8 billion parameters that they are for, so that all their commands run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tokenizers
import torch
import transformers

SPECIALS = {
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral": ["<s>", "</s>", "<unk>"],
    "falcon": ["<|endoftext|>"],
}
"""Special tokens of each family; the first one begins a text, and the second one, or else the first, ends it."""


def train_tokenizer(texts: list[Path], family: str, vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """Train a byte-level BPE with the family's special tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    specials = SPECIALS[family]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in texts], trainer)
    bos, eos = specials[0], specials[:2][-1]
    if family != "falcon":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def random_model(family: str, tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.PreTrainedModel:
    """A model of the family with random weights."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": len(tokenizer)}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "falcon":
        config = transformers.FalconConfig(**sizes, **ids, multi_query=True, parallel_attn=True, bias=False)
    else:
        kind = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}[family]
        config = kind(
            **sizes, **ids, intermediate_size=192, num_key_value_heads=2, max_position_embeddings=2048,
            tie_word_embeddings=False,
        )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a toy language model in the files of Hugging Face.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("-family", choices=list(SPECIALS), default="llama")
    parser.add_argument("-texts", type=Path, nargs="+", required=True, help="text files for the tokeniser")
    parser.add_argument("-vocab_size", type=int, default=400)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer(arguments.texts, arguments.family, arguments.vocab_size)
    tokenizer.save_pretrained(arguments.directory)
    random_model(arguments.family, tokenizer).save_pretrained(arguments.directory)


if __name__ == "__main__":
    main()
