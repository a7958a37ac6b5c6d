"""The vocabulary of a new model: what a file holds, cut, with special tokens in front and padding behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, islice
from pathlib import Path

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.text.vocab import Vocab
from onmt_llm.text.vocab_formats import read_counted

PADDING = "averyunlikelytoken"
"""OpenNMT-py's name for the rows behind the last token; a number follows."""


def read_frequent(path: str | Path, *, min_frequency: int = 0) -> list[str]:
    """Tokens of a vocabulary file that occur often enough; all of them where the file has no counts.

    Raises:
        DataError: The file is missing, not a vocabulary, or holds a token twice; the message has the line.
    """
    tokens = list(Vocab.read(path, SpecialTokens()))
    if min_frequency <= 1:
        return tokens
    counts = read_counted(Path(path))[1]
    if counts is None:
        logger.warning("%s has no counts: the minimum frequency of %d changes nothing.", path, min_frequency)
        return tokens
    return [token for token, number in zip(tokens, counts, strict=True) if number >= min_frequency]


def no_vocabulary(option: str) -> ConfigError:
    """A new model has no vocabulary for a side: neither `option` names a file, nor has the tokeniser one of its own."""
    return ConfigError(
        f"{option} must name a vocabulary file for a new model, but is not given.",
        hint="make one with onmt_llm_build_vocab, or start from a checkpoint with train_from",
    )


def with_specials(tokens: Sequence[str], specials: Iterable[str], *, size: int = 0) -> list[str]:
    """Tokens behind those of `specials` that they lack, and not more than `size` in all; 0 = no limit.

    No special token is lost to the limit: one that stands too far behind comes to the front.
    """
    wanted = list(dict.fromkeys(specials))
    near = set(tokens[: max(size - len(wanted), 0)] if size else tokens)
    front = [token for token in wanted if token not in near]
    moved = set(front)
    result = [*front, *(token for token in tokens if token not in moved)]
    return result[: max(size, len(wanted))] if size else result


def padded(tokens: Sequence[str], multiple: int) -> list[str]:
    """Tokens up to the next multiple."""
    return padded_to(tokens, -(-len(tokens) // multiple) * multiple)


def padded_to(tokens: Sequence[str], rows: int) -> list[str]:
    """Tokens up to `rows`."""
    taken = set(tokens)
    names = (name for number in count() if (name := f"{PADDING}{number}") not in taken)
    return [*tokens, *islice(names, max(rows - len(tokens), 0))]
