"""Features of source tokens, written behind a word or token as OpenNMT writes them: `houses￨NOUN￨PLURAL`."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.errors import DataError

SEPARATOR = "￨"
_SPACERS = ("▁", "Ġ")
_JOINERS = ("￭", "@@")


def split_features(tokens: Sequence[str], count: int, defaults: Sequence[str] = ()) -> list[list[str]]:
    """Columns of tokens that carry `count` features each: the tokens themselves, then one list for each feature.

    Args:
        tokens: As written.
        count: Features that every token must have.
        defaults: What tokens have where none of them has any.

    Raises:
        DataError: A token has another number of features.
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
    """A text of annotated words as plain text, and the features of each of its words.

    Raises:
        DataError: As `split_features` says.
    """
    words, *columns = split_features(text.split(), count, defaults)
    return " ".join(words), [list(row) for row in zip(*columns, strict=True)]


def parse_defaults(text: str | None, count: int) -> list[str]:
    """`src_feats_defaults`, which holds one value for each feature: `0￨N`.

    Raises:
        DataError: It holds another number of values.
    """
    values = text.split(SEPARATOR) if text else []
    if values and len(values) != count:
        raise DataError(f"src_feats_defaults must hold {count} values (n_src_feats), but holds {len(values)}: {text}.")
    return values


def words_of(tokens: Sequence[str]) -> list[int]:
    """Which word each token belongs to, counted from 0: by the spacer of SentencePiece or byte-level models, or by the
    joiner of pyonmttok and subword-nmt; without either every token is a word."""
    spaced = any(token.startswith(_SPACERS) for token in tokens)
    words: list[int] = []
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        inside = not token.startswith(_SPACERS) if spaced else before.endswith(_JOINERS) or token.startswith(_JOINERS)
        words.append((words[-1] + (not inside)) if words else 0)
    return words


def spread(tokens: Sequence[str], features: Sequence[Sequence[str]]) -> list[str]:
    """Tokens that carry the features of the words that they are parts of.

    Raises:
        DataError: The tokens do not make up as many words as there are features for.
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
