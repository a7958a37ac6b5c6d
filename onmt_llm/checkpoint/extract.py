"""The vocabulary and the embeddings of a checkpoint as text files."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.atomic import atomic_file
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.text.placeholders import escape
from onmt_llm.text.vocab import ODD, Vocab


def extract_embeddings(checkpoint: str | Path, output: str | Path, *, side: str = "tgt") -> int:
    """Write a checkpoint's embeddings to a text file in GloVe format: a token and its vector per line.

    Args:
        checkpoint: Checkpoint directory, with or without a trailing `.pt`.
        output: The file; an existing one is replaced.
        side: "src" or "tgt".

    Returns:
        The number of vectors.
    """
    opened = Checkpoint.open(checkpoint)
    codec, model = opened.codec(), opened.config.model
    has_own = side == "src" and not model.is_decoder_only and not model.share_embeddings
    name = f"{'encoder' if has_own else 'decoder'}.embed_tokens.weight"
    vectors_VD = opened.tensor(name).float()
    tokens = list(codec.src_vocab if side == "src" else codec.vocab)
    with atomic_file(output) as place, open(place, "w", encoding="utf-8", newline="\n") as file:
        for token, vector in zip(tokens, vectors_VD, strict=False):
            file.write(f"{escape(token, ODD)} {' '.join(f'{value:.6g}' for value in vector.tolist())}\n")
    return min(len(tokens), len(vectors_VD))


def extract_vocabulary(checkpoint: str | Path, output: str | Path, *, side: str = "tgt") -> int:
    """Write a checkpoint's vocabulary to a text file, one token per line, in the order of ids.

    Args:
        checkpoint: Checkpoint directory, with or without a trailing `.pt`.
        output: The file; an existing one is replaced.
        side: "src" or "tgt"; a language model has one vocabulary for both.

    Returns:
        The number of tokens.
    """
    codec = Checkpoint.open(checkpoint).codec()
    vocab: Vocab = codec.src_vocab if side == "src" else codec.vocab
    with atomic_file(output) as place:
        vocab.write(place)
    return len(vocab)
