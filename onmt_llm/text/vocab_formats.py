"""Readers of vocabulary files; the format is detected from the content, and errors name the line.

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
from pathlib import Path
from typing import Any

from onmt_llm.errors import DataError
from onmt_llm.text.placeholders import unescape

_TAB_NUMBER = re.compile(r"(.+)\t(-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)")
_SPACE_COUNT = re.compile(r"(\S+) ([0-9]+)")


def read_tokens(path: Path) -> list[str]:
    """Tokens of a vocabulary file in id order (duplicates included).

    Raises:
        DataError: The file is missing or is not a vocabulary.
    """
    return read_counted(path)[0]


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


MOST_UNUSED = 100_000
"""Maximum number of ids without a token in a table that has fewer tokens than this."""


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
