"""Features of source tokens, written behind a token as OpenNMT writes them: `houses￨NOUN￨PLURAL`."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.errors import DataError

SEPARATOR = "￨"


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
            f"Every source token must carry {count} features, as in `token{SEPARATOR}feature`, but "
            f"{SEPARATOR.join(wrong)!r} carries {len(wrong) - 1}.",
            hint="annotate every token, or give the features of unannotated lines in src_feats_defaults",
        )
    return [[row[i] for row in rows] for i in range(count + 1)]
