"""`Vocab`: the model's tokens in id order, and its special tokens; and the formats of vocabulary files.

The format of a file is detected from its content, and errors name the line.

| file | a line, or the document |
|---|---|
| ours, OpenNMT-py's exported vocab.txt | `token` |
| OpenNMT's build_vocab | `token<TAB>count` or `token count` |
| SentencePiece's .vocab | `token<TAB>log-probability` |
| CTranslate2's vocabulary.json | `["token", ...]` |
| Hugging Face's vocab.json | `{"token": id, ...}` |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.text.placeholders import escape, unescape

# What a line of vocab.txt cannot hold safely: any white space, control characters, the byte-order mark.
ODD = re.compile("[\\s\x00-\x1f\x7f-\x9f\ufeff]")

_TAB_NUMBER = re.compile(r"(.+)\t(-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)")
_SPACE_COUNT = re.compile(r"(\S+) ([0-9]+)")

MOST_UNUSED = 100_000
"""Maximum number of ids without a token in a table that has fewer tokens than this."""


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
        """Read a vocabulary file in any of the known formats.

        Raises:
            DataError: The file is missing, is not a vocabulary, or has a token twice; the message names the line.
        """
        tokens = read_counted(Path(path))[0]
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


def read_counted(path: Path) -> tuple[list[str], list[int] | None]:
    """Tokens of a vocabulary file in id order, and their counts if the file has them.

    The numbers of a SentencePiece `.vocab` are scores (0 or below), not counts.

    Raises:
        DataError: The file is missing or is not a vocabulary.
    """
    text = _read_text(path)
    if path.suffix == ".json":
        return _from_json(text, path), None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if lines and all(line.endswith("\r") for line in lines):
        lines = [line[:-1] for line in lines]
    if not lines:
        raise DataError(f"A vocabulary must have at least one token, but {path} is empty.")
    tokens, numbers = _columns(lines, path)
    are_counts = all(number.isdigit() for number in numbers) and any(number != "0" for number in numbers)
    return [unescape(token) for token in tokens], [int(number) for number in numbers] if are_counts else None


def unused_token(id_: int) -> str:
    """Name for an id without a token, in models whose embedding has more rows than their tokeniser has tokens."""
    return f"<|unused_{id_}|>"


def tokens_by_id(ids: dict[str, int]) -> list[str]:
    """A {token: id} table as a list in id order; ids without a token get `unused_token`.

    Raises:
        DataError: An id is so high that most of the list would be unused.
    """
    highest = max(ids.values(), default=-1)
    if highest >= len(ids) + max(MOST_UNUSED, len(ids)):
        raise DataError(
            f"The ids of a tokeniser must be close to each other, but {len(ids)} tokens go up to {highest}."
        )
    tokens = [unused_token(id_) for id_ in range(highest + 1)]
    for token, id_ in ids.items():
        tokens[id_] = token
    return tokens


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"The vocabulary file {path} cannot be read: {error.strerror}.") from error
    try:
        if b"\0" in data:
            raise ValueError("it holds zero bytes")
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise DataError(
            f"A vocabulary must be UTF-8 text, but {path} is not ({error}).",
            hint="a SentencePiece `.model` goes to src_subword_model; the vocabulary is its `.vocab`, or the vocab.txt "
            "that the converter writes",
        ) from error


def _columns(lines: list[str], path: Path) -> tuple[list[str], list[str]]:
    """The tokens of a text vocabulary, and the numbers after them if its first line has one."""
    column = next((form for form in (_TAB_NUMBER, _SPACE_COUNT) if form.fullmatch(lines[0])), None)
    tokens: list[str] = []
    numbers: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line == "":
            raise DataError(f"Every line of a vocabulary must hold a token, but line {number} of {path} is empty.")
        match = (column or _TAB_NUMBER).fullmatch(line)
        if (match is not None) != (column is not None):
            has, first = ("a number", "none") if match else ("no number", "one")
            raise DataError(
                f"Either all lines of a vocabulary carry a number or none does, but line {number} of {path} has "
                f"{has} after its token ({line!r}) and line 1 has {first}."
            )
        tokens.append(match[1] if match else line)
        if match:
            numbers.append(match[2])
    return tokens, numbers


def _from_json(text: str, path: Path) -> list[str]:
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"The vocabulary {path} must be valid JSON, but is not: {error}.") from error
    if isinstance(content, list) and content and all(isinstance(token, str) for token in content):
        return content
    if isinstance(content, dict) and content and all(type(id_) is int for id_ in content.values()):
        return _by_id(content, path)
    is_tokenizer = isinstance(content, dict) and "model" in content
    raise DataError(
        f"A JSON vocabulary must be a list of tokens or a {{token: id}} table, but {path} is not.",
        hint="a tokenizer.json goes to the tokeniser, not to the vocabulary" if is_tokenizer else None,
    )


def _by_id(ids: dict[str, int], path: Path) -> list[str]:
    tokens = {id_: token for token, id_ in ids.items()}
    missing = next((id_ for id_ in range(len(ids)) if id_ not in tokens), None)
    if missing is not None:
        raise DataError(
            f"The ids of {path} must be 0 to {len(ids) - 1}, each once, but {missing} is missing.",
            hint="convert from tokenizer.json instead, which also holds the added tokens",
        )
    return [tokens[id_] for id_ in range(len(ids))]
