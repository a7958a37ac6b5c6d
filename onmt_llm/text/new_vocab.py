"""The vocabulary of a new model: the tokens of a file, truncated, with special tokens first and padding last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, islice
from pathlib import Path

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.text.vocab import Vocab, read_counted

PADDING = "averyunlikelytoken"
"""OpenNMT-py's name of padding tokens; a number follows."""


def read_frequent(path: str | Path, *, min_frequency: int = 0) -> list[str]:
    """Tokens of a vocabulary file that occur at least `min_frequency` times; all tokens if the file has no counts.

    Raises:
        DataError: The file is missing, is not a vocabulary, or has a token twice; the message names the line.
    """
    tokens = list(Vocab.read(path, SpecialTokens()))
    if min_frequency <= 1:
        return tokens
    counts = read_counted(Path(path))[1]
    if counts is None:
        logger.warning("%s has no counts, so the minimum frequency of %d has no effect.", path, min_frequency)
        return tokens
    return [token for token, number in zip(tokens, counts, strict=True) if number >= min_frequency]


def no_vocabulary(option: str) -> ConfigError:
    """The error for a side of a new model without vocabulary: no file in `option`, and none in the tokeniser."""
    return ConfigError(
        f"{option} must name a vocabulary file for a new model, but is not given.",
        hint="make one with onmt_llm_build_vocab, or start from a checkpoint with train_from",
    )


def with_specials(tokens: Sequence[str], specials: Iterable[str], *, size: int = 0) -> list[str]:
    """The missing `specials` followed by `tokens`, at most `size` in all (0 = no limit).

    The limit drops no special token: one beyond it is moved to the front.
    """
    wanted = list(dict.fromkeys(specials))
    near = set(tokens[: max(size - len(wanted), 0)] if size else tokens)
    front = [token for token in wanted if token not in near]
    moved = set(front)
    result = [*front, *(token for token in tokens if token not in moved)]
    return result[: max(size, len(wanted))] if size else result


def padded(tokens: Sequence[str], multiple: int) -> list[str]:
    """Tokens padded to the next multiple of `multiple`."""
    return padded_to(tokens, -(-len(tokens) // multiple) * multiple)


def padded_to(tokens: Sequence[str], rows: int) -> list[str]:
    """Tokens padded to `rows`."""
    taken = set(tokens)
    names = (name for number in count() if (name := f"{PADDING}{number}") not in taken)
    return [*tokens, *islice(names, max(rows - len(tokens), 0))]
