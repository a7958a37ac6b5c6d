"""Source features, written after a word or token as in OpenNMT: `houses￨NOUN￨PLURAL`."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.errors import DataError

SEPARATOR = "￨"
_SPACERS = ("▁", "Ġ")
_JOINERS = ("￭", "@@")


def split_features(tokens: Sequence[str], count: int, defaults: Sequence[str] = ()) -> list[list[str]]:
    """Columns of tokens that carry `count` features each: the tokens themselves, then one list for each feature.

    Args:
        tokens: Tokens with their features.
        count: Number of features of every token.
        defaults: Features to use if no token has any.

    Raises:
        DataError: A token has a different number of features.
    """
    rows = [token.split(SEPARATOR) for token in tokens]
    if defaults and all(len(row) == 1 for row in rows):
        rows = [[*row, *defaults] for row in rows]
    wrong = next((row for row in rows if len(row) != count + 1), None)
    if wrong is not None:
        raise DataError(
            f"Every source word must carry {count} features, as in `word{SEPARATOR}feature`, but "
            f"{SEPARATOR.join(wrong)!r} carries {len(wrong) - 1}.",
            hint="annotate every word of a line, or none of it and set src_feats_defaults",
        )
    return [[row[i] for row in rows] for i in range(count + 1)]


def split_text(text: str, count: int, defaults: Sequence[str] = ()) -> tuple[str, list[list[str]]]:
    """The plain text of annotated words, and the features of each word.

    Raises:
        DataError: See `split_features`.
    """
    words, *columns = split_features(text.split(), count, defaults)
    return " ".join(words), [list(row) for row in zip(*columns, strict=True)]


def parse_defaults(text: str | None, count: int) -> list[str]:
    """The values of `src_feats_defaults`, one for each feature: `0￨N`.

    Raises:
        DataError: The number of values is wrong.
    """
    values = text.split(SEPARATOR) if text else []
    if values and len(values) != count:
        raise DataError(f"src_feats_defaults must hold {count} values (n_src_feats), but holds {len(values)}: {text}.")
    return values


def words_of(tokens: Sequence[str]) -> list[int]:
    """The index of the word to which each token belongs.

    Words are found by the spacer of SentencePiece or byte-level models, or by the joiner of pyonmttok and subword-nmt.
    Without either, every token is a word.
    """
    spaced = any(token.startswith(_SPACERS) for token in tokens)
    words: list[int] = []
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        inside = not token.startswith(_SPACERS) if spaced else before.endswith(_JOINERS) or token.startswith(_JOINERS)
        words.append((words[-1] + (not inside)) if words else 0)
    return words


def spread(tokens: Sequence[str], features: Sequence[Sequence[str]]) -> list[str]:
    """Tokens with the features of the words to which they belong.

    Raises:
        DataError: The number of words in the tokens is not the number of annotated words.
    """
    words = words_of(tokens)
    if not tokens or words[-1] + 1 != len(features):
        found = words[-1] + 1 if words else 0
        raise DataError(
            f"The tokens of a source must make up its {len(features)} annotated words, but make up {found}: "
            f"{' '.join(tokens)}.",
            hint="use a tokeniser that marks spaces (SentencePiece) or joints (pyonmttok with joiner_annotate)",
        )
    return [SEPARATOR.join([token, *features[word]]) for token, word in zip(tokens, words, strict=True)]
