"""`Vocab`: the model's tokens in id order, and its special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.text.placeholders import escape
from onmt_llm.text.vocab_formats import read_tokens

# What a line of vocab.txt cannot hold safely: any white space, control characters, the byte-order mark.
ODD = re.compile("[\\s\x00-\x1f\x7f-\x9f\ufeff]")


class Vocab:
    """Tokens <-> ids; a token's id is its position.

    Args:
        tokens: Tokens in id order, without duplicates.
        specials: The special tokens.

    Raises:
        DataError: A token occurs twice.
    """

    def __init__(self, tokens: Sequence[str], specials: SpecialTokens) -> None:
        self._tokens = list(tokens)
        self._ids = {token: id_ for id_, token in enumerate(self._tokens)}
        self.specials = specials
        if len(self._ids) < len(self._tokens):
            raise DataError(_duplicate(self._tokens, "entry", "the vocabulary", first=0))
        self.unk_id = self._role(specials.unk)
        self.bos_id = self._role(specials.bos)
        self.eos_id = self._role(specials.eos)
        self.pad_id = self._role(specials.pad)

    def _role(self, token: str | None) -> int | None:
        return None if token is None else self._ids.get(token)

    @classmethod
    def read(cls, path: str | Path, specials: SpecialTokens) -> Vocab:
        """Read a vocabulary file in any of the known formats (see `vocab_formats`).

        Raises:
            DataError: The file is missing, is not a vocabulary, or has a token twice; the message names the line.
        """
        tokens = read_tokens(Path(path))
        if len(set(tokens)) < len(tokens):
            raise DataError(_duplicate(tokens, "line", str(path), first=1))
        return cls(tokens, specials)

    def write(self, path: str | Path) -> None:
        """Write vocab.txt: one token per line in id order; white space and control characters as `｟U+000A｠`."""
        lines = "".join(f"{escape(token, ODD)}\n" for token in self._tokens)
        Path(path).write_text(lines, encoding="utf-8", newline="\n")

    def id(self, token: str) -> int:
        """The id of a token, or of the unknown token if it is not in the vocabulary.

        Raises:
            DataError: It is not in the vocabulary, and there is no unknown token.
        """
        id_ = self._ids.get(token, self.unk_id)
        if id_ is None:
            raise DataError(
                f"Every token must be in the vocabulary, but {token!r} is not and there is no unknown token.",
                hint="set `unk` in the checkpoint's `specials` to a token of the vocabulary",
            )
        return id_

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens; see `id`."""
        known, unk = self._ids, self.unk_id
        if unk is None:
            return [self.id(token) for token in tokens]
        return [known.get(token, unk) for token in tokens]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Tokens with these ids."""
        return [self._tokens[id_] for id_ in ids]

    def __getitem__(self, id_: int) -> str:
        return self._tokens[id_]

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids


def _duplicate(tokens: Sequence[str], unit: str, where: str, *, first: int) -> str:
    seen: dict[str, int] = {}
    for position, token in enumerate(tokens, start=first):
        if token in seen:
            return (
                f"A token may occur only once in a vocabulary, but {token!r} is both {unit} {seen[token]} and "
                f"{unit} {position} of {where}."
            )
        seen[token] = position
    raise AssertionError("no duplicate")
