"""`FieldReader`: the fields of a record, before it is parsed into an example."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.record import Record
from onmt_llm.data.readers.rows import header, row_format
from onmt_llm.data.spec import Keys

MISSING: Final = object()
"""The value of a field that a record does not have."""
PROMPT: Final = "prompt"
"""The field that every record with a question has: if it is not the name of a key, the question itself."""


class FieldReader:
    """Reads the fields of the records of a corpus.

    JSON objects and rows have their keys. Lines of parallel files have `src` and `tgt`, other texts `text`.

    Args:
        name: Name of the corpus.
        corpus: Its paths and keys.
    """

    def __init__(self, name: str, corpus: CorpusConfig) -> None:
        self._has_keys = corpus.has_keys
        self._names = ("src", "tgt") if corpus.path_tgt else ("text",)
        self._rows = row_format(corpus) if corpus.path_table else None
        self._headers: dict[Path, list[str]] = {}
        self._keys = Keys.of(name, corpus)

    def __call__(self, record: Record) -> Mapping[str, Any] | None:
        """The fields of a record; None if it is invalid, which its parser reports."""
        try:
            if not self._has_keys:
                return self.of_texts([part.decode() for part in record.parts])
            if self._rows is None:
                item = json.loads(record.parts[0])
                return item if isinstance(item, dict) else None
            path = record.paths[0]
            if path not in self._headers:
                self._headers[path] = header(path, self._rows)
            return dict(zip(self._headers[path], self._rows.fields(record.parts[0].decode()), strict=True))
        except (ValueError, RecursionError):
            return None

    def of_texts(self, texts: Sequence[str]) -> dict[str, str]:
        """The fields of the lines of a record of text files."""
        return dict(zip(self._names, texts, strict=False))

    def value(self, item: Mapping[str, Any], name: str) -> Any:
        """The value of a field, or `MISSING`; `prompt` is also the instruction, or the first message of the user."""
        value = value_at(item, name)
        return self._question(item) if value is MISSING and name == PROMPT else value

    def _question(self, item: Mapping[str, Any]) -> Any:
        keys = self._keys
        for prompt, answer in keys.named + keys.pairs:
            if prompt in item and answer in item:
                return [item[prompt], item.get(keys.input)]
        turns = next((item[key] for key in keys.messages if key in item), None)
        for turn in turns if isinstance(turns, list) else ():
            for role, content in keys.turns:
                if isinstance(turn, dict) and keys.roles.get(str(turn.get(role))) == "user" and content in turn:
                    return turn[content]
        return MISSING


def value_at(item: Mapping[str, Any], name: str) -> Any:
    """The value of a field: of a key, or of a key inside others (`meta.language`, `messages.0.content`)."""
    if name in item:
        return item[name]
    value: Any = item
    for part in name.split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return MISSING
    return value
